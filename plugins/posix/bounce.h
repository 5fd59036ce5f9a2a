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
#include <span>
#include <string>
#include <vector>

#include <sys/uio.h>

#include "nixl/device.h"

namespace nixl::posix {

// Copies between a buffer and memory of a GPU in pieces; a reason if that fails.
std::string copyFromGpu(Devices& devices, int device, void* buffer, std::span<const iovec> pieces);
std::string copyToGpu(Devices& devices,
                      int device,
                      std::span<const iovec> pieces,
                      const void* buffer,
                      uint64_t bytes);

struct Bounce {
    void* data = nullptr;
    int fixedBuffer = -1;
    bool registrationTried = false;
    bool pinTried = false;  // for copies from and to a GPU
    bool pinned = false;
    bool extra = false;  // beyond the limit: goes when it is given back
};

class BouncePool {
  public:
    // `memory`: where they lie, one behind the other; null: anywhere.
    BouncePool(Devices& devices, size_t count, size_t bytes, void* memory = nullptr)
        : devices_(devices), bytes_(bytes), limit_(count), memory_(static_cast<char*>(memory)) {}
    ~BouncePool();
    BouncePool(const BouncePool&) = delete;
    BouncePool& operator=(const BouncePool&) = delete;

    // Null when all are in use or memory is short. One who cannot wait may go beyond the limit.
    Bounce* take(bool beyond_limit = false);
    void give(Bounce* bounce);
    size_t inUse() const { return inUse_.load(); }
    size_t bytes() const { return bytes_; }

  private:
    Devices& devices_;
    const size_t bytes_;
    const size_t limit_;
    char* const memory_;
    std::atomic<size_t> inUse_{0};
    std::mutex mutex_;  // guards what follows
    std::vector<std::unique_ptr<Bounce>> all_;
    std::vector<Bounce*> free_;
};

}  // namespace nixl::posix
