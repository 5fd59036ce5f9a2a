// See device_transfer.h.
#include "peer/device_transfer.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "device/devices.h"
#include "device/plan_copy.h"
#include "lanes/stream/job.h"

namespace nixl::peer {

namespace {

constexpr uint64_t kLargestSlice = 4 << 20;
constexpr uint64_t kSmallestSlice = 512 << 10;
constexpr unsigned kSlicesAtOnce = 4;
constexpr std::chrono::milliseconds kStagedCancelPatience{100};

class StagedOperation;

// A piece of the plan on its way through one buffer.
struct Slice final : public StreamJobOwner, public std::enable_shared_from_this<Slice> {
    std::shared_ptr<StagedOperation> operation;
    uint64_t offset = 0;  // in bytes of the plan
    uint64_t bytes = 0;
    std::unique_ptr<DeviceStaging> buffer;
    PlanRegion staged;              // the buffer
    std::vector<PlanRun> nearRuns;  // own memory and buffer
    std::vector<PlanRun> farRuns;   // buffer and the peer's memory
    TransferPlan near;
    TransferPlan far;
    std::shared_ptr<device::PlanCopy> copy;  // with the operation's mutex
    std::shared_ptr<StreamJob> job;          // the same

    void streamed(Status status, std::vector<SegmentFailure> failures) override;
};
using SlicePtr = std::shared_ptr<Slice>;

// One post.
class StagedOperation final : public std::enable_shared_from_this<StagedOperation> {
  public:
    StagedOperation(std::shared_ptr<EngineImpl> engine,
                    std::shared_ptr<Link> link,
                    const TransferPlan& plan,
                    bool checksum,
                    CompletionPtr completion)
        : engine_(std::move(engine)),
          link_(std::move(link)),
          plan_(plan),
          checksum_(checksum),
          sliceBytes_(std::clamp(plan.bytes / kSlicesAtOnce, kSmallestSlice, kLargestSlice)),
          completion_(std::move(completion)) {}

    void notify(std::string_view message) {
        notification_ = message;
        notify_ = true;
    }

    void start() {
        grants_ = link_->grants();
        if (grants_ == nullptr) {
            return finish(Status::notFound("the metadata of agent \"" + link_->peer().name +
                                           "\" is no longer known"),
                          {});
        }
        feed();
    }

    void finish(Status status, std::vector<SegmentFailure> failures) {
        if (ended_.exchange(true)) {
            return;
        }
        if (!status.ok()) {
            if (status.code() == ErrorCode::CANCELED) {
                failures.clear();
            }
            const std::string& peer = link_->peer().name;
            const bool named = status.code() == ErrorCode::CANCELED ||
                               status.message().find(peer) != std::string::npos;
            completion_->fail(
                named ? std::move(status)
                      : Status(status.code(), "agent \"" + peer + "\": " + status.message(),
                               status.systemErrno()),
                std::move(failures));
            return;
        }
        if (!notify_) {
            completion_->succeed();
            return;
        }
        // Nothing of the plan is touched any more: cancel may end it at any time.
        const Status sent = link_->send(
            std::move(notification_),
            [completion = completion_](const Status& outcome) {
                outcome.ok() ? completion->succeed() : completion->fail(outcome);
            },
            &token_);
        if (!sent.ok()) {
            completion_->fail(sent);
        }
    }

    void cancel() {
        std::vector<SlicePtr> slices;
        bool begun = false;
        {
            const MutexLock lock(mutex_);
            stop_ = true;
            slices = slices_;
            begun = begun_;
        }
        if (!begun) {
            return finish(Status::canceled("canceled"), {});
        }
        for (const SlicePtr& slice : slices) {
            std::shared_ptr<StreamJob> job;
            {
                const MutexLock lock(mutex_);
                if (slice->copy != nullptr) {
                    slice->copy->stop();
                }
                job = slice->job;
            }
            if (job != nullptr) {
                cancelJob(job);
            }
        }
        if (slices.empty() && ended_.load() && token_ != 0 && link_->withdraw(token_)) {
            completion_->cancel();
        }
    }

    void help() {
        std::vector<std::shared_ptr<device::PlanCopy>> copies;
        {
            const MutexLock lock(mutex_);
            for (const SlicePtr& slice : slices_) {
                if (slice->copy != nullptr) {
                    copies.push_back(slice->copy);
                }
            }
        }
        for (const auto& copy : copies) {
            copy->poll();
        }
        engine_->pollSet.progress();
    }

    // The network is done with a slice.
    void streamed(const SlicePtr& slice, Status status, std::vector<SegmentFailure> failures) {
        bool stopped = false;
        {
            const MutexLock lock(mutex_);
            slice->job.reset();
            stopped = stop_;
        }
        if (plan_.op == OpType::WRITE || !status.ok() || stopped) {
            if (plan_.op == OpType::READ) {
                failures = {{0, slice->bytes, 0, status.systemErrno()}};
            }
            return sliceEnded(slice,
                              stopped && status.ok() && plan_.op == OpType::READ
                                  ? Status::canceled("canceled")
                                  : std::move(status),
                              std::move(failures));
        }
        copyNear(slice);
    }

  private:
    void cancelJob(const std::shared_ptr<StreamJob>& job) {
        const Status why = Status::canceled("canceled");
        link_->stream().cancel(job, why);
        if (plan_.op == OpType::READ) {
            job->abandon(why);
            return;
        }
        engine_->reactor.startTimer(
            Reactor::Clock::now() + kStagedCancelPatience, [weak = std::weak_ptr(job)] {
                if (const auto late = weak.lock()) {
                    late->abandon(Status::canceled(
                        "canceled; remote_unconfirmed: the peer has not acknowledged it"));
                }
            });
    }

    // Starts slices up to the limit, and ends where there are none left.
    void feed() {
        for (;;) {
            auto slice = std::make_shared<Slice>();
            {
                const MutexLock lock(mutex_);
                begun_ = true;
                if (feeding_ || slices_.size() >= kSlicesAtOnce) {
                    return;
                }
                if (stop_ || !status_.ok() || !cut(*slice)) {
                    break;
                }
                slice->operation = shared_from_this();
                slices_.push_back(slice);
                feeding_ = true;
            }
            begin(slice);
            const MutexLock lock(mutex_);
            feeding_ = false;
        }
        endIfQuiet();
    }

    void begin(const SlicePtr& slice) {
        const auto gpu =
            std::find_if(plan_.localRegions.begin(), plan_.localRegions.end(),
                         [](const PlanRegion& region) { return region.type == MemType::VRAM; });
        Result<std::unique_ptr<DeviceStaging>> buffer =
            device::devices().staging(static_cast<int>(gpu->deviceId), slice->bytes);
        if (!buffer.ok()) {
            return sliceEnded(slice, buffer.status(), {{0, slice->bytes, 0, 0}});
        }
        slice->buffer = std::move(buffer).value();
        const auto at = reinterpret_cast<uint64_t>(slice->buffer->data());
        slice->staged = {MemType::DRAM, at, slice->bytes, 0, {}, nullptr};
        for (PlanRun& run : slice->nearRuns) {
            run.remote += at;
        }
        for (PlanRun& run : slice->farRuns) {
            run.local += at;
        }
        slice->near.op = slice->far.op = plan_.op;
        slice->near.localRegions = plan_.localRegions;
        slice->near.remoteRegions = {&slice->staged, 1};
        slice->near.runs = slice->nearRuns;
        slice->far.peer = plan_.peer;
        slice->far.localRegions = {&slice->staged, 1};
        slice->far.remoteRegions = plan_.remoteRegions;
        slice->far.runs = slice->farRuns;
        slice->near.bytes = slice->far.bytes = slice->bytes;
        plan_.op == OpType::WRITE ? copyNear(slice) : stream(slice);
    }

    // The next slice of the plan; false at its end.
    bool cut(Slice& slice) NIXL_REQUIRES(mutex_) {
        slice.offset = offset_;
        while (run_ < plan_.runs.size() && slice.bytes < sliceBytes_) {
            const PlanRun& run = plan_.runs[run_];
            PlanRun near = run;
            near.local = run.local + step_ * run.localStride + inner_;
            near.planOffset = slice.bytes;
            const uint64_t room = sliceBytes_ - slice.bytes;
            if (inner_ != 0 || run.size > room) {  // a piece of one segment
                near.size = std::min(run.size - inner_, room);
                near.count = 1;
            } else {
                near.count = std::min(run.count - step_, room / std::max<uint64_t>(run.size, 1));
            }
            PlanRun far = near;
            far.remote = run.remote + step_ * run.remoteStride + inner_;
            near.remote = far.local = slice.bytes;
            near.remoteStride = far.localStride = near.size;
            near.remoteRegion = far.localRegion = 0;
            inner_ = near.count == 1 && near.size < run.size ? inner_ + near.size : 0;
            if (inner_ == run.size || inner_ == 0) {
                inner_ = 0;
                step_ += near.count;
            }
            if (step_ == run.count) {
                step_ = 0;
                ++run_;
            }
            slice.bytes += near.size * near.count;
            slice.near.segments += near.count;
            slice.nearRuns.push_back(near);
            slice.farRuns.push_back(far);
        }
        slice.far.segments = slice.near.segments;
        offset_ += slice.bytes;
        return slice.bytes > 0;
    }

    // Between own memory and the buffer.
    void copyNear(const SlicePtr& slice) {
        const auto copy = device::PlanCopy::create(
            device::devices(), engine_->pool, slice->near,
            device::placesOf(slice->near.remoteRegions),
            [self = shared_from_this(), slice](Status status,
                                               std::vector<SegmentFailure> failures) {
                self->copied(slice, std::move(status), std::move(failures));
            });
        {
            const MutexLock lock(mutex_);
            slice->copy = copy;
            if (stop_) {
                copy->stop();
            }
        }
        copy->start(false);
    }

    void copied(const SlicePtr& slice, Status status, std::vector<SegmentFailure> failures) {
        bool stopped = false;
        {
            const MutexLock lock(mutex_);
            slice->copy.reset();
            stopped = stop_;
        }
        if (status.ok() && plan_.op == OpType::WRITE) {
            if (!stopped) {
                return stream(slice);
            }
            status = Status::canceled("canceled");
        }
        if (!status.ok() && plan_.op == OpType::WRITE) {
            failures = {{0, slice->bytes, 0, 0}};  // nothing of it was sent
        }
        sliceEnded(slice, std::move(status), std::move(failures));
    }

    // Between the buffer and the peer.
    void stream(const SlicePtr& slice) {
        const auto job = std::make_shared<StreamJob>(
            slice->bytes, std::make_shared<StreamParts>(slice->far, grants_, checksum_), slice);
        bool stopped = false;
        {
            const MutexLock lock(mutex_);
            slice->job = job;
            stopped = stop_;
        }
        link_->stream().start(job, 0);
        if (stopped) {
            cancelJob(job);
        }
    }

    void sliceEnded(const SlicePtr& slice, Status status, std::vector<SegmentFailure> failures) {
        {
            const MutexLock lock(mutex_);
            std::erase(slices_, slice);
            if (!status.ok()) {
                if (status_.ok()) {
                    status_ = std::move(status);
                }
                for (SegmentFailure& failure : failures) {
                    failure.planOffset += slice->offset;
                    failures_.push_back(failure);
                }
            }
        }
        slice->buffer.reset();
        feed();
    }

    void endIfQuiet() {
        Status status;
        std::vector<SegmentFailure> failures;
        {
            const MutexLock lock(mutex_);
            if (!slices_.empty()) {
                return;
            }
            status = status_;
            if (stop_ && (status.ok() ? offset_ < plan_.bytes : true)) {
                status =
                    status.code() == ErrorCode::CANCELED ? status : Status::canceled("canceled");
            }
            failures = std::move(failures_);
            if (!status.ok() && offset_ < plan_.bytes) {
                failures.push_back({offset_, plan_.bytes - offset_, 0, 0});
            }
        }
        finish(std::move(status), std::move(failures));
    }

    const std::shared_ptr<EngineImpl> engine_;
    const std::shared_ptr<Link> link_;
    const TransferPlan& plan_;  // valid until the completion is final
    const bool checksum_;
    const uint64_t sliceBytes_;
    const CompletionPtr completion_;
    GrantsPtr grants_;
    std::string notification_;
    bool notify_ = false;
    std::atomic<bool> ended_{false};
    std::atomic<uint64_t> token_{0};

    Mutex mutex_;
    std::vector<SlicePtr> slices_ NIXL_GUARDED_BY(mutex_);
    bool begun_ NIXL_GUARDED_BY(mutex_) = false;
    bool feeding_ NIXL_GUARDED_BY(mutex_) = false;
    bool stop_ NIXL_GUARDED_BY(mutex_) = false;
    Status status_ NIXL_GUARDED_BY(mutex_);
    std::vector<SegmentFailure> failures_ NIXL_GUARDED_BY(mutex_);
    // Where the next slice begins.
    size_t run_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t step_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t inner_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t offset_ NIXL_GUARDED_BY(mutex_) = 0;
};

void Slice::streamed(Status status, std::vector<SegmentFailure> failures) {
    operation->streamed(shared_from_this(), std::move(status), std::move(failures));
}

class StagedTransfer final : public BackendTransfer {
  public:
    StagedTransfer(std::shared_ptr<EngineImpl> engine,
                   std::shared_ptr<Link> link,
                   const TransferPlan& plan,
                   bool checksum)
        : engine_(std::move(engine)), link_(std::move(link)), plan_(plan), checksum_(checksum) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        if (notification.size() > kMaxNotification) {
            return Status::invalidParam("notification of " + std::to_string(notification.size()) +
                                        " bytes: at most " + std::to_string(kMaxNotification) +
                                        " are legal");
        }
        auto operation = std::make_shared<StagedOperation>(engine_, link_, plan_, checksum_,
                                                           std::move(completion));
        if (has_notification) {
            operation->notify(notification);
        }
        {
            const MutexLock lock(mutex_);
            current_ = operation;
        }
        if (link_->ready()) {
            operation->start();
            return {};
        }
        link_->whenReady([operation](const Status& status) {
            status.ok() ? operation->start() : operation->finish(status, {});
        });
        return {};
    }
    void cancel() override {
        if (const auto operation = current()) {
            operation->cancel();
        }
    }
    void help() override {
        if (const auto operation = current()) {
            operation->help();
        }
    }
    TransferDescription describe() const override {
        return {"stream", "GPU memory passes through page-locked buffers", "socket"};
    }

  private:
    std::shared_ptr<StagedOperation> current() {
        const MutexLock lock(mutex_);
        return current_;
    }
    const std::shared_ptr<EngineImpl> engine_;
    const std::shared_ptr<Link> link_;
    const TransferPlan& plan_;
    const bool checksum_;
    Mutex mutex_;
    std::shared_ptr<StagedOperation> current_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<BackendTransfer> makeStagedTransfer(std::shared_ptr<EngineImpl> engine,
                                                    std::shared_ptr<Link> link,
                                                    const TransferPlan& plan,
                                                    bool checksum) {
    return std::make_unique<StagedTransfer>(std::move(engine), std::move(link), plan, checksum);
}

}  // namespace nixl::peer
