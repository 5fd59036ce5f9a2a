// One post of a transfer on the stream lane: gives out its parts, counts what comes back and ends
// when nothing of it is under way any more. Thread-safe.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "nixl/backend.h"

#include "base/mutex.h"
#include "lanes/stream/client.h"
#include "lanes/stream/parts.h"

namespace nixl::peer {

// Hears of the end of a job: once, without locks; the plan is not used any more from then on.
class StreamJobOwner {
  public:
    virtual ~StreamJobOwner() = default;
    virtual void streamed(Status status, std::vector<SegmentFailure> failures) = 0;
};

class StreamJob final : public PartOwner, public std::enable_shared_from_this<StreamJob> {
  public:
    StreamJob(uint64_t bytes,
              std::shared_ptr<StreamParts> parts,
              std::shared_ptr<StreamJobOwner> owner);

    // The next part, or nothing where all are taken.
    std::optional<StreamPart> nextPart();
    bool hasMore() const { return more_.load(std::memory_order_acquire); }
    uint64_t bytesLeft() const { return bytesLeft_.load(std::memory_order_relaxed); }

    // No further parts; ends as soon as those under way are back.
    void stop(const Status& why);
    // Ends now whatever is still under way (which must not touch the plan's memory any more).
    void abandon(const Status& why);

    void partDone(Status status, const SegmentFailure& failure) override;

  private:
    void endIfQuiet();

    const uint64_t bytes_;
    std::atomic<bool> more_{true};
    std::atomic<uint64_t> bytesLeft_;

    Mutex mutex_;
    std::shared_ptr<StreamParts> parts_ NIXL_GUARDED_BY(mutex_);  // null once it has ended
    size_t taken_ NIXL_GUARDED_BY(mutex_) = 0;                    // of the parts
    uint64_t offset_ NIXL_GUARDED_BY(mutex_) = 0;                 // bytes in these
    uint64_t underWay_ NIXL_GUARDED_BY(mutex_) = 0;
    bool ended_ NIXL_GUARDED_BY(mutex_) = false;
    Status status_ NIXL_GUARDED_BY(mutex_);
    std::vector<SegmentFailure> failures_ NIXL_GUARDED_BY(mutex_);
    std::shared_ptr<StreamJobOwner> owner_ NIXL_GUARDED_BY(mutex_);
};

// Jobs that have parts to give out, each in its turn. Not thread-safe.
class StreamJobQueue {
  public:
    using Jobs = std::list<std::shared_ptr<StreamJob>>;

    void push(std::shared_ptr<StreamJob> job) {
        if (spare_.empty()) {
            jobs_.push_back(std::move(job));
            return;
        }
        spare_.front() = std::move(job);
        jobs_.splice(jobs_.end(), spare_, spare_.begin());
    }
    // The one whose turn it is, which goes behind the others; null where none has parts left.
    std::shared_ptr<StreamJob> next() {
        while (!jobs_.empty() && !jobs_.front()->hasMore()) {
            jobs_.front().reset();
            spare_.splice(spare_.begin(), jobs_, jobs_.begin());
        }
        if (spare_.size() > kSpare) {
            spare_.resize(kSpare);
        }
        if (jobs_.empty()) {
            return nullptr;
        }
        jobs_.splice(jobs_.end(), jobs_, jobs_.begin());
        return jobs_.back();
    }
    void erase(const std::shared_ptr<StreamJob>& job) { std::erase(jobs_, job); }
    Jobs takeAll() { return std::exchange(jobs_, {}); }
    bool empty() const { return jobs_.empty(); }
    // Whether more than that is still to be given out.
    bool moreThan(uint64_t bytes) const {
        uint64_t sum = 0;
        for (const auto& job : jobs_) {
            sum += job->bytesLeft();
            if (sum > bytes) {
                return true;
            }
        }
        return false;
    }

  private:
    static constexpr size_t kSpare = 16;
    Jobs jobs_;
    Jobs spare_;  // null; so that a job that comes when another has gone allocates nothing
};

}  // namespace nixl::peer
