// Fuzzes both sides of a data connection: whatever a peer sends, no byte outside the region
// changes and nothing crashes. The first byte says which side and how the bytes are cut.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "lanes/stream/client.h"
#include "lanes/stream/target.h"
#include "session/testing_access.h"

namespace {

using namespace nixl::peer;  // NOLINT(google-build-using-namespace)

constexpr size_t kGuard = 256;
constexpr size_t kRegion = 4096;

template <typename Side>
void pour(Side& side, std::string_view bytes, size_t cut) {
    while (!bytes.empty()) {
        iovec vectors[8];
        const size_t count = side.inputSpace(vectors, 2 + cut % 6);
        if (count == 0) {
            iovec out[8];
            if (!side.wantsOutput()) {
                return;
            }
            size_t total = 0;
            const size_t pieces = side.output(out, 8);
            for (size_t i = 0; i < pieces; ++i) {
                total += out[i].iov_len;
            }
            side.sent(total);
            if (!side.received(0).ok()) {
                return;
            }
            continue;
        }
        size_t got = 0;
        size_t limit = std::min(bytes.size(), cut);
        for (size_t i = 0; i < count && limit > 0; ++i) {
            const size_t n = std::min(vectors[i].iov_len, limit);
            std::memcpy(vectors[i].iov_base, bytes.data(), n);
            bytes.remove_prefix(n);
            got += n;
            limit -= n;
        }
        if (!side.received(got).ok()) {
            return;
        }
        if (got == 0) {
            return;
        }
    }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 2) {
        return 0;
    }
    const size_t cut = 1 + data[0] % 64 * 17;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
    // At a fixed address, so that inputs can name it.
    static std::vector<char> memory(kRegion + 2 * kGuard);
    std::fill(memory.begin(), memory.end(), 'g');
    TestAccess access;
    access.enter(1, memory.data() + kGuard, kRegion);
    const nixl::base::Digest key{5};
    if (data[1] % 2 == 0) {
        StreamTarget target(access, key);
        // A request that is good, so that the rest is its payload and what follows.
        nixl::base::ByteWriter out;
        const size_t begin = beginFrame(out, FrameType::GRANT);
        GrantProof{grantId(access.grant()), grantProof(access.grant(), key)}.encode(out);
        endFrame(out, begin);
        Request request;
        request.op = data[1] % 4 == 0 ? nixl::OpType::WRITE : nixl::OpType::READ;
        request.id = 1;
        request.grant = grantId(access.grant());
        request.regions = {{1, 1}};
        request.runs = {{reinterpret_cast<uint64_t>(memory.data()) + kGuard, 100, 200, 20, 0}};
        if (data[1] % 8 < 4) {
            request.encode(out);
        }
        pour(target, out.bytes(), 10'000);
        pour(target, bytes, cut);
    } else {
        StreamClient client("peer", key);
        for (int i = 0; i < 3; ++i) {
            Request request;
            request.op = i == 1 ? nixl::OpType::WRITE : nixl::OpType::READ;
            request.bytes = 2000;
            request.regions = {{1, 1}};
            request.runs = {{4096, 100, 100, 20, 0}};
            const std::vector<MemoryRun> here = {
                {reinterpret_cast<uint64_t>(memory.data()) + kGuard, 100, 200, 20, 0}};
            client.submit({std::make_shared<PreparedRequest>(request, Key{}, here, 0),
                           static_cast<uint64_t>(i) + 1, nullptr});
        }
        iovec vectors[8];
        while (client.wantsOutput()) {
            size_t total = 0;
            const size_t count = client.output(vectors, 8);
            for (size_t i = 0; i < count; ++i) {
                total += vectors[i].iov_len;
            }
            client.sent(total);
        }
        pour(client, bytes, cut);
        client.fail(nixl::Status::disconnected("end"));
        if (client.takeFinished().size() != 3) {
            __builtin_trap();
        }
    }
    for (size_t i = 0; i < kGuard; ++i) {
        if (memory[i] != 'g' || memory[kGuard + kRegion + i] != 'g') {
            __builtin_trap();
        }
    }
    return 0;
}
