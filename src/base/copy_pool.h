// One large copy cut into chunks that several pool threads, and callers who help, take one by one.
// Shared by those who work on it; thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "nixl/services.h"

namespace nixl::base {

// The usual size of a chunk: small enough that a cancel is seen within a fraction of a millisecond.
inline constexpr uint64_t kCopyChunk = 1 << 20;

class ChunkedJob : public std::enable_shared_from_this<ChunkedJob> {
  public:
    // Does one chunk; false stops the job: chunks nobody has begun are dropped.
    using Chunk = std::function<bool(uint64_t index)>;
    // Called once by whoever ends the last chunk; nobody is inside a chunk any more.
    using Finished = std::function<void()>;

    // REQUIRES: chunks > 0
    static std::shared_ptr<ChunkedJob> create(uint64_t chunks, Chunk chunk, Finished finished);

    // Lets up to `workers` threads of the pool work on it; as bulk work where it is long.
    void start(WorkPool& pool, unsigned workers, bool bulk);
    // Does one chunk in the caller; false where none is left to begin.
    bool progress();
    // Drops the chunks nobody has begun; those that run go on to their end.
    void stop();
    bool finished() const { return left_.load(std::memory_order_acquire) == 0; }

  private:
    ChunkedJob(uint64_t chunks, Chunk chunk, Finished finished);
    void leave(uint64_t chunks);

    const uint64_t chunks_;
    Chunk chunk_;
    Finished finished_;
    std::atomic<uint64_t> next_{0};
    std::atomic<uint64_t> left_;
};

}  // namespace nixl::base
