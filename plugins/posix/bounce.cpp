// The pool of aligned buffers; see bounce.h.
#include "bounce.h"

#include <algorithm>

#include <sys/mman.h>
#include <unistd.h>

namespace nixl::posix {

BouncePool::~BouncePool() {
    for (const auto& bounce : all_) {
        if (bounce->pinned) {
            devices_.unpin(bounce->data);
        }
        if (memory_ == nullptr) {
            munmap(bounce->data, bytes_);
        }
    }
}

std::string copyFromGpu(Devices& devices, int device, void* buffer, std::span<const iovec> pieces) {
    std::vector<DeviceCopy> copies;
    copies.reserve(pieces.size());
    auto to = reinterpret_cast<uint64_t>(buffer);
    for (const iovec& piece : pieces) {
        copies.push_back({to, reinterpret_cast<uint64_t>(piece.iov_base), piece.iov_len});
        to += piece.iov_len;
    }
    const auto batch = devices.copy(copies, device);
    return (batch.ok() ? batch.value()->wait() : batch.status()).message();
}

std::string copyToGpu(Devices& devices,
                      int device,
                      std::span<const iovec> pieces,
                      const void* buffer,
                      uint64_t bytes) {
    std::vector<DeviceCopy> copies;
    copies.reserve(pieces.size());
    auto from = reinterpret_cast<uint64_t>(buffer);
    for (const iovec& piece : pieces) {
        const uint64_t size = std::min<uint64_t>(bytes, piece.iov_len);
        if (size == 0) {
            break;
        }
        copies.push_back({reinterpret_cast<uint64_t>(piece.iov_base), from, size});
        from += size;
        bytes -= size;
    }
    const auto batch = devices.copy(copies, device);
    return (batch.ok() ? batch.value()->wait() : batch.status()).message();
}

Bounce* BouncePool::take(bool beyond_limit) {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
        const bool extra = all_.size() >= limit_;
        if (extra && (!beyond_limit || memory_ != nullptr)) {
            return nullptr;
        }
        void* data = memory_ != nullptr ? memory_ + all_.size() * bytes_
                                        : mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) {
            return nullptr;
        }
        all_.push_back(std::make_unique<Bounce>(Bounce{data}));
        all_.back()->extra = extra;
        all_.back()->registrationTried = extra;
        free_.push_back(all_.back().get());
    }
    Bounce* bounce = free_.back();
    free_.pop_back();
    ++inUse_;
    return bounce;
}

void BouncePool::give(Bounce* bounce) {
    const std::lock_guard lock(mutex_);
    --inUse_;
    if (!bounce->extra) {
        free_.push_back(bounce);
        return;
    }
    munmap(bounce->data, bytes_);
    std::erase_if(all_, [bounce](const auto& one) { return one.get() == bounce; });
}

}  // namespace nixl::posix
