// See verify.h.
#include "lanes/host/verify.h"

#include <algorithm>
#include <cerrno>
#include <string>

#include "nixl/user_memory.h"

namespace nixl::peer {

Status HostVerifier::verify(HostPeer& host, const HostPeer::Batch& batch, uint64_t& good) {
    if (there_ == nullptr) {
        there_ = std::make_unique<char[]>(HostPeer::kMaxBytes);
        here_ = std::make_unique<char[]>(kStep);
    }
    HostPeer::Batch again = batch;
    iovec pieces[HostPeer::kMaxVectors];  // in pairs with the other side's
    char* at = there_.get();
    for (size_t i = 0; i < batch.remoteCount; ++i) {
        pieces[i] = {at, batch.remote[i].iov_len};
        at += batch.remote[i].iov_len;
    }
    again.local = pieces;
    again.localCount = batch.remoteCount;
    NIXL_RETURN_IF_ERROR(host.transfer(OpType::READ, again, good));
    good = 0;
    for (size_t i = 0; i < batch.localCount; ++i) {
        const iovec& vector = batch.local[i];
        for (size_t done = 0; done < vector.iov_len;) {
            // By way of a copy: this side's memory may have been unmapped.
            const size_t size = std::min(vector.iov_len - done, kStep);
            const iovec piece{static_cast<char*>(vector.iov_base) + done, size};
            if (!copyFromUser(here_.get(), {&piece, 1}, size)) {
                return Status::backend("local memory is not mapped", EFAULT);
            }
            const char* const there = there_.get() + good;
            const auto differs = std::mismatch(there, there + size, here_.get());
            good += static_cast<uint64_t>(differs.first - there);
            if (differs.first != there + size) {
                return Status::backend(
                    "what was copied differs from its source: damaged, or changed meanwhile");
            }
            done += size;
        }
    }
    return {};
}

}  // namespace nixl::peer
