// See checksums.h.
#include "hicache/checksums.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "base/threads.h"

namespace nixl::hicache {
namespace {

constexpr uint64_t kHashedPerThread = 2ULL << 20;  // a thread costs about 30 us to start
constexpr unsigned kMaxHashThreads = 8;
constexpr size_t kStep = 16;  // blocks a thread takes at a time

uint32_t checksumOf(std::span<const Part> parts) {
    uint32_t sum = 0;
    for (const Part& part : parts) {
        sum = base::crc32c(sum, reinterpret_cast<const void*>(part.address), part.length);
    }
    return sum;
}

}  // namespace

void checksumBlocks(std::span<const Part> parts, size_t per_block, std::span<uint32_t> out) {
    uint64_t bytes = 0;
    for (const Part& part : parts) {
        bytes += part.length;
    }
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t at = next.fetch_add(kStep); at < out.size(); at = next.fetch_add(kStep)) {
            for (size_t i = at; i < std::min(at + kStep, out.size()); ++i) {
                out[i] = checksumOf(parts.subspan(i * per_block, per_block));
            }
        }
    };
    const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
    const auto helpers = static_cast<unsigned>(std::min<uint64_t>(
        {bytes / kHashedPerThread, cores - 1, kMaxHashThreads, out.size() / kStep}));
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < helpers; ++i) {
        auto thread = base::startThread("nixl-hicache-crc", base::Priority::NORMAL, work);
        if (thread.ok()) {  // where none can be had, this one does it all
            threads.push_back(std::move(thread).value());
        }
    }
    work();
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace nixl::hicache
