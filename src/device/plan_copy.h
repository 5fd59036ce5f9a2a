// Moves the bytes of a plan of which one side at least lies in memory of GPUs, all of it reachable
// from this process: in batches on streams, a few under way at a time. No thread waits for them.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nixl/backend.h"
#include "nixl/device.h"
#include "nixl/services.h"

#include "base/mutex.h"

namespace nixl::device {

// Where a remote region lies in this process, as opposed to the plan: an offset to its addresses,
// and the GPU that holds it (-1: host memory).
struct RemotePlace {
    uint64_t offset = 0;
    int device = -1;
};

// The places of regions that are where the plan says.
std::vector<RemotePlace> placesOf(std::span<const PlanRegion> regions);

// Whether a plan touches memory of a GPU.
bool touchesDevices(const TransferPlan& plan);

// One post of a plan. Thread-safe; a new one for each post.
class PlanCopy final : public std::enable_shared_from_this<PlanCopy> {
  public:
    // Called once: no byte of the plan is touched any more. CANCELED where stop() came in time.
    using Ended = std::function<void(Status status, std::vector<SegmentFailure> failures)>;

    // The plan must stay until the end.
    static std::shared_ptr<PlanCopy> create(Devices& devices,
                                            WorkPool& pool,
                                            const TransferPlan& plan,
                                            std::vector<RemotePlace> places,
                                            Ended ended);

    // `here`: begins in the calling thread, which may take as long as copies of ordinary host
    // memory do.
    void start(bool here);
    // Sees ends that nobody has told of yet.
    void poll();
    // What has not begun is left out.
    void stop();

    // Few bytes and segments: what start(true) is for.
    static bool isSmall(const TransferPlan& plan);

  private:
    // Copies of one GPU's stream that are started together.
    struct Batch {
        std::vector<DeviceCopy> copies;
        std::vector<uint64_t> planOffsets;
        std::shared_ptr<DeviceBatch> running;
    };
    // The plan as far as it is the business of one GPU.
    struct Track {
        int device = 0;
        size_t run = 0;
        uint64_t step = 0;
        uint64_t inner = 0;
        bool busy = false;  // a thread is starting copies
        bool done = false;
        unsigned running = 0;
    };

    PlanCopy(Devices& devices,
             WorkPool& pool,
             const TransferPlan& plan,
             std::vector<RemotePlace> places,
             Ended ended);
    int deviceOf(const PlanRun& run) const;
    void feed(size_t index);
    bool cut(Track& track, Batch& batch) const;
    void launch(size_t index, const std::shared_ptr<Batch>& batch);
    void ended(size_t index, const std::shared_ptr<Batch>& batch);
    void failed(const Batch& batch, size_t begin, size_t end, const Status& why)
        NIXL_REQUIRES(mutex_);
    void endIfQuiet();

    Devices& devices_;
    WorkPool& pool_;
    const TransferPlan& plan_;
    const std::vector<RemotePlace> places_;
    const bool gpusOnly_;
    std::atomic<bool> stop_{false};

    Mutex mutex_;
    std::vector<Track> tracks_ NIXL_GUARDED_BY(mutex_);
    std::vector<std::shared_ptr<DeviceBatch>> batches_ NIXL_GUARDED_BY(mutex_);
    Status status_ NIXL_GUARDED_BY(mutex_);
    std::vector<SegmentFailure> failures_ NIXL_GUARDED_BY(mutex_);
    unsigned refusals_ NIXL_GUARDED_BY(mutex_) = 0;
    bool dropped_ NIXL_GUARDED_BY(mutex_) = false;
    Ended ended_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::device
