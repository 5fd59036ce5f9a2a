// Aligned buffers for O_DIRECT I/O whose memory is not aligned, and for GPU memory. A fixed number,
// made when first used; whoever finds none waits for the next completion.
//
// Threads: thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace nixl::posix {

struct Bounce {
    void* data = nullptr;
    int fixedBuffer = -1;
    bool registrationTried = false;
    bool pinTried = false;  // for copies from and to a GPU
    bool pinned = false;
};

class BouncePool {
  public:
    BouncePool(size_t count, size_t bytes) : bytes_(bytes), limit_(count) {}
    ~BouncePool();
    BouncePool(const BouncePool&) = delete;
    BouncePool& operator=(const BouncePool&) = delete;

    Bounce* take();  // null when all are in use or memory is short
    void give(Bounce* bounce);
    size_t inUse() const { return inUse_.load(); }
    size_t bytes() const { return bytes_; }

  private:
    const size_t bytes_;
    const size_t limit_;
    std::atomic<size_t> inUse_{0};
    std::mutex mutex_;  // guards what follows
    std::vector<std::unique_ptr<Bounce>> all_;
    std::vector<Bounce*> free_;
};

}  // namespace nixl::posix
