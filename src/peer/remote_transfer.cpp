// See remote_transfer.h.
#include "peer/remote_transfer.h"

#include <utility>

#include "base/recycler.h"
#include "lanes/host/copy.h"
#include "lanes/host/plan_maps.h"
#include "peer/copy_cost.h"
#include "peer/engine_impl.h"
#include "peer/post_operation.h"

namespace nixl::peer {

namespace {

class RemoteTransfer final : public BackendTransfer {
  public:
    RemoteTransfer(std::shared_ptr<EngineImpl> engine,
                   std::shared_ptr<Link> link,
                   const TransferPlan& plan,
                   const LaneOptions& options)
        : engine_(std::move(engine)),
          link_(std::move(link)),
          plan_(plan),
          options_(options),
          maps_(std::make_shared<PlanMaps>(options.host ? link_->host().mapRegions(plan)
                                                        : std::vector<RegionMapPtr>())) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        if (notification.size() > kMaxNotification) {
            return Status::invalidParam("notification of " + std::to_string(notification.size()) +
                                        " bytes: at most " + std::to_string(kMaxNotification) +
                                        " are legal");
        }
        const bool ready = link_->ready();
        const bool mapped = options_.host && maps_->whole();
        const bool small = cost(mapped) <= static_cast<double>(options_.inlineBudgetMicroseconds);
        if (ready && small && !has_notification && copyAtOnce(mapped, completion)) {
            return {};
        }
        {
            const MutexLock lock(mutex_);
            current_.reset();  // the last post has ended: its memory is used again
        }
        auto operation = base::makeRecycled<PostOperation>(
            memory_->operations, engine_, link_, plan_, maps_, memory_, std::move(completion));
        if (has_notification) {
            operation->notify(notification);
        }
        {
            const MutexLock lock(mutex_);
            current_ = operation;
        }
        if (ready) {
            operation->start(options_, small);
            return {};
        }
        link_->whenReady([operation, options = options_](const Status& status) {
            if (status.ok()) {
                operation->start(options, false);
            } else {
                operation->fail(status);
            }
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
        TransferDescription description;
        const auto [peer, reason, decided] = link_->host().choice();
        const std::shared_ptr<HostPeer> host = options_.host ? peer : nullptr;
        const PlanMaps::Count count = maps_->count();
        if (host != nullptr && (host->attached() || count.whole == count.regions)) {
            describeHost(count, reason, description);
        } else if (!link_->ready()) {
            description.lane = options_.host ? "host" : "stream";
            description.reason = "no session yet; decided when it is open";
        } else {
            description.lane = "stream";
            description.reason = !options_.host    ? "the host lane is not asked for"
                                 : host != nullptr ? reason + ", and " + count.reason
                                                   : reason;
            description.device = "socket";
        }
        return description;
    }

    std::optional<TransferCost> estimateCost() const override {
        const bool mapped = options_.host && maps_->whole();
        TransferCost estimate;
        estimate.duration = std::chrono::microseconds(static_cast<int64_t>(cost(mapped)) + 1);
        estimate.margin = estimate.duration;
        estimate.method = mapped ? "copy through shared memory at 8 GB/s and 20 ns a segment"
                                 : "cross-memory attach at 6 GB/s and 0.3 us a segment";
        return estimate;
    }

  private:
    double cost(bool mapped) const { return mapped ? mappedCost_ : attachCost_; }

    void describeHost(const PlanMaps::Count& count,
                      const std::string& session_reason,
                      TransferDescription& description) const {
        const bool whole = count.whole == count.regions;
        const bool some = count.whole + count.partly > 0;
        description.lane = "host";
        description.device = whole  ? "shared mapping"
                             : some ? "shared mapping and cross-memory attach"
                                    : "cross-memory attach";
        const bool small = cost(whole) <= static_cast<double>(options_.inlineBudgetMicroseconds);
        description.reason = session_reason;
        if (!whole) {
            description.reason +=
                "; " + std::to_string(count.whole) + " of " + std::to_string(count.regions) +
                " regions are mapped" +
                (count.partly > 0 ? ", " + std::to_string(count.partly) + " in part" : "") + ": " +
                count.reason;
        }
        description.reason += small ? "; copied inside post" : "; copied by the copy pool";
    }

    // A small copy without a notification, done when this returns: it needs no PostOperation, since
    // nobody can cancel or help it. False where the host lane cannot be used.
    bool copyAtOnce(bool mapped, const CompletionPtr& completion) {
        const std::shared_ptr<HostPeer> host = options_.host ? link_->host().peer() : nullptr;
        if (host == nullptr || !(mapped || host->attached())) {
            return false;
        }
        SegmentFailure failure;
        Status status = hostCopy(*host, plan_, maps_->all(), 0, plan_.bytes, *completion,
                                 options_.checksum, failure);
        if (status.ok()) {
            completion->succeed();
        } else if (status.code() == ErrorCode::CANCELED) {
            completion->fail(std::move(status));
        } else {
            completion->fail(named(std::move(status), link_->peer().name), {failure});
        }
        return true;
    }

    std::shared_ptr<PostOperation> current() {
        const MutexLock lock(mutex_);
        return current_;
    }

    const std::shared_ptr<EngineImpl> engine_;
    const std::shared_ptr<Link> link_;
    const TransferPlan& plan_;
    const LaneOptions options_;
    const std::shared_ptr<const PlanMaps> maps_;
    const double attachCost_ = kAttach.of(plan_);
    const double mappedCost_ = kMapped.of(plan_);
    const std::shared_ptr<PostMemory> memory_ = std::make_shared<PostMemory>();
    Mutex mutex_;
    std::shared_ptr<PostOperation> current_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<BackendTransfer> makeRemoteTransfer(std::shared_ptr<EngineImpl> engine,
                                                    std::shared_ptr<Link> link,
                                                    const TransferPlan& plan,
                                                    const LaneOptions& options) {
    return std::make_unique<RemoteTransfer>(std::move(engine), std::move(link), plan, options);
}

}  // namespace nixl::peer
