// A queue pair whose send side lies in GPU memory, so that a kernel can post to it. Threads: one at
// a time; fail() any.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device.h"

namespace nixl::gpunetio {

// What the other side must know of a queue pair.
struct QueueAddress {
    uint32_t number = 0;
    Gid gid{};
    uint16_t lid = 0;
};

class Queue {
  public:
    static Result<std::unique_ptr<Queue>> create(std::shared_ptr<Device> device);
    // REQUIRES: no kernel works on it
    ~Queue();
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    const std::shared_ptr<Device>& device() const { return device_; }
    uint32_t number() const { return number_; }
    Status connect(const QueueAddress& peer);
    // Whatever is posted, and will be, ends with an error soon.
    void fail();
    // For Job::queue.
    uint64_t address() const { return reinterpret_cast<uint64_t>(state_->data()); }

  private:
    // Memory of the GPU that the adapter may use.
    struct Ring {
        void* address = nullptr;
        void* umem = nullptr;
    };
    explicit Queue(std::shared_ptr<Device> device)
        : device_(std::move(device)), doca_(device_->doca()) {}
    Status open();
    Status makeRing(uint64_t size, const char* what, Ring& ring);
    void endRing(Ring& ring);
    Status makeCompletions();
    Status makePair();
    Status makeState();
    Status modify(void* attributes);
    Status setPath(void* attributes, void* address, const QueueAddress& peer);

    const std::shared_ptr<Device> device_;
    const Doca& doca_;
    Ring completions_;
    Ring requests_;
    Ring record_;
    void* cqUar_ = nullptr;
    void* qpUar_ = nullptr;
    void* cq_ = nullptr;
    void* qp_ = nullptr;
    void* registers_ = nullptr;  // mapped for the GPU
    uint32_t number_ = 0;
    std::unique_ptr<DeviceStaging> state_;  // SendQueue
};

// Page-locked memory of the host, which the GPU reaches at its address.
Result<std::unique_ptr<DeviceStaging>> sharedMemory(Devices& devices, int gpu, uint64_t size);

}  // namespace nixl::gpunetio
