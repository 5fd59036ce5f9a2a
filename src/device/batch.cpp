// Copies on streams of their own; see nixl/device.h.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "device/cuda_devices.h"
#include "device/watcher.h"

namespace nixl::device {

namespace {

// An end that comes soon is waited for without going to sleep, which costs as much.
constexpr std::chrono::microseconds kSpin{30};

class Batch final : public DeviceBatch, public std::enable_shared_from_this<Batch> {
  public:
    Batch(Driver& cuda, int device, Lane lane) : cuda_(cuda), device_(device), lane_(lane) {}
    ~Batch() override {
        if (!cuda_.mine()) {
            return;  // a forked child
        }
        (void)wait();
        cuda_.giveLane(device_, lane_, good_);
    }

    // REQUIRES: the GPU's context is current
    void start(std::span<const DeviceCopy> copies) {
        for (; started_ < copies.size(); ++started_) {
            const DeviceCopy& one = copies[started_];
            if (const int result = cuda_.copy(one.to, one.from, one.size, lane_.stream);
                result != 0) {
                refused_ = cuda_.failure("cuMemcpyAsync", result);
                break;
            }
        }
        if (const int result = cuda_.eventRecord(lane_.event, lane_.stream); result != 0) {
            const MutexLock lock(mutex_);
            end(result, "cuEventRecord");
        }
    }

    bool poll() override {
        if (ended_.load(std::memory_order_acquire)) {
            return true;
        }
        std::function<void()> call;
        {
            const MutexLock lock(mutex_);
            if (!ended_.load(std::memory_order_relaxed)) {
                const int result = query();
                if (result == kNotReady) {
                    return false;
                }
                end(result, "cuEventQuery");
            }
            call = std::exchange(call_, nullptr);
        }
        if (call) {
            call();
        }
        return true;
    }

    Status wait() override {
        const auto limit = std::chrono::steady_clock::now() + kSpin;
        while (!poll()) {
            if (std::chrono::steady_clock::now() >= limit) {
                // Its outcome is what poll() sees next.
                (void)aside([this] { return cuda_.eventSynchronize(lane_.event); });
            }
        }
        const MutexLock lock(mutex_);
        return status_;
    }

    size_t copied() const override {
        const MutexLock lock(mutex_);
        return copied_;
    }

    void then(std::function<void()> call) override {
        {
            const MutexLock lock(mutex_);
            if (!ended_.load(std::memory_order_relaxed)) {
                call_ = std::exchange(call, nullptr);
            }
        }
        if (call) {
            call();
        } else {
            watch(shared_from_this());
        }
    }

  private:
    // Does not disturb a graph that another thread captures.
    template <typename Call>
    int aside(const Call& call) const {
        const int before = cuda_.captureMode(kRelaxed);
        const int result = call();
        cuda_.captureMode(before);
        return result;
    }
    int query() const {
        return aside([this] { return cuda_.eventQuery(lane_.event); });
    }

    void end(int result, const char* call) NIXL_REQUIRES(mutex_) {
        if (result != 0) {
            status_ = cuda_.failure(call, result);
        } else {
            status_ = refused_;
            copied_ = started_;
        }
        good_ = result == 0;
        ended_.store(true, std::memory_order_release);
    }

    Driver& cuda_;
    const int device_;
    const Lane lane_;
    size_t started_ = 0;  // written before anybody else sees the batch
    Status refused_;
    std::atomic<bool> ended_{false};
    mutable Mutex mutex_;
    Status status_ NIXL_GUARDED_BY(mutex_);
    size_t copied_ NIXL_GUARDED_BY(mutex_) = 0;
    bool good_ = false;  // written before ended_
    std::function<void()> call_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace

Result<std::shared_ptr<DeviceBatch>> CudaDevices::copy(std::span<const DeviceCopy> copies,
                                                       int device) {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    const DeviceScope scope(*this, device);
    NIXL_RETURN_IF_ERROR(scope.status());
    Result<Lane> lane = found.value()->takeLane(device);
    if (!lane.ok()) {
        return lane.status();
    }
    auto batch = std::make_shared<Batch>(*found.value(), device, lane.value());
    batch->start(copies);
    return std::shared_ptr<DeviceBatch>(std::move(batch));
}

}  // namespace nixl::device
