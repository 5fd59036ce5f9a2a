// One post of a transfer on the stream lane: cuts the plan into parts, counts what comes back and
// ends when nothing of it is under way any more. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "nixl/backend.h"

#include "base/mutex.h"
#include "peer/grants.h"
#include "peer/stream_client.h"

namespace nixl::peer {

class StreamJob : public std::enable_shared_from_this<StreamJob> {
  public:
    // `ended` is called once, without locks; the plan is not used any more from then on.
    using Ended = std::function<void(Status, std::vector<SegmentFailure>)>;
    StreamJob(const TransferPlan& plan, GrantsPtr grants, bool checksum, Ended ended);

    // The next part, or null where all are taken.
    StreamPartPtr nextPart();
    bool hasMore() const { return more_.load(std::memory_order_acquire); }
    uint64_t bytesLeft() const { return bytesLeft_.load(std::memory_order_relaxed); }

    // No further parts; ends as soon as those under way are back.
    void stop(const Status& why);
    // Ends now whatever is still under way (which must not touch the plan's memory any more).
    void abandon(const Status& why);

    static constexpr uint64_t kPartBytes = 4 << 20;
    static constexpr size_t kPartRuns = 4096;

  private:
    void partDone(Status status, const SegmentFailure& failure);
    void endIfQuiet();

    const TransferPlan* plan_;  // null once it has ended
    const GrantsPtr grants_;
    const bool checksum_;
    std::atomic<bool> more_{true};
    std::atomic<uint64_t> bytesLeft_;

    Mutex mutex_;
    size_t run_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t step_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t inner_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t offset_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t underWay_ NIXL_GUARDED_BY(mutex_) = 0;
    bool ended_ NIXL_GUARDED_BY(mutex_) = false;
    Status status_ NIXL_GUARDED_BY(mutex_);
    std::vector<SegmentFailure> failures_ NIXL_GUARDED_BY(mutex_);
    Ended endedCall_;
};

}  // namespace nixl::peer
