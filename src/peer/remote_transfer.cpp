// See remote_transfer.h.
#include "peer/remote_transfer.h"

#include <algorithm>
#include <utility>

#include "base/copy_pool.h"
#include "base/recycler.h"
#include "base/threads.h"
#include "lanes/host/copy.h"
#include "lanes/host/plan_maps.h"
#include "peer/engine_impl.h"

namespace nixl::peer {

namespace {

using std::chrono::milliseconds;

// What a copy costs, measured on a plain 2-core machine: a batch, each piece, and the bytes.
struct CopyCost {
    double microsecondsPerBatch;
    double microsecondsPerSegment;
    double bytesPerMicrosecond;
    double of(const TransferPlan& plan) const {
        const uint64_t batches = plan.segments / HostPeer::kMaxVectors + 1;
        return microsecondsPerBatch * static_cast<double>(batches) +
               microsecondsPerSegment * static_cast<double>(plan.segments) +
               static_cast<double>(plan.bytes) / bytesPerMicrosecond;
    }
};
constexpr CopyCost kAttach{1.0, 0.3, 6'000};
constexpr CopyCost kMapped{0.3, 0.02, 8'000};
constexpr uint64_t kSegmentsPerChunk = 512;
constexpr uint64_t kSharedBytes = 4 << 20;
constexpr uint64_t kSmallChunk = 512 << 10;
// Posts up to this size are sent by the caller, larger ones by the stream threads.
constexpr uint64_t kInlineStreamBytes = 64 << 10;
constexpr milliseconds kCancelPatience{100};

Status named(Status status, const std::string& peer) {
    if (status.code() == ErrorCode::CANCELED || status.message().find(peer) != std::string::npos) {
        return status;
    }
    return {status.code(), "agent \"" + peer + "\": " + status.message(), status.systemErrno()};
}

bool isDram(std::span<const PlanRegion> regions) {
    return std::all_of(regions.begin(), regions.end(),
                       [](const PlanRegion& region) { return region.type == MemType::DRAM; });
}

// What the posts of a transfer use one after the other, so that the second allocates nothing.
// Touched by the post alone, and posts are serialised by the core.
struct PostMemory {
    std::shared_ptr<base::Recycler> operations = std::make_shared<base::Recycler>();
    std::shared_ptr<base::Recycler> jobs = std::make_shared<base::Recycler>();
    std::shared_ptr<StreamParts> parts;
};

// One post. Owns everything that may outlive the transfer object's attention.
class PostOperation final : public StreamJobOwner,
                            public base::PollSet::Member,
                            public std::enable_shared_from_this<PostOperation> {
  public:
    PostOperation(std::shared_ptr<EngineImpl> engine,
                  std::shared_ptr<Link> link,
                  const TransferPlan& plan,
                  std::shared_ptr<const PlanMaps> maps,
                  std::shared_ptr<PostMemory> memory,
                  CompletionPtr completion)
        : engine_(std::move(engine)),
          link_(std::move(link)),
          plan_(plan),
          maps_(std::move(maps)),
          memory_(std::move(memory)),
          op_(plan.op),
          completion_(std::move(completion)) {}

    void notify(std::string_view message) {
        notification_ = message;
        notify_ = true;
    }

    // Starts moving bytes over the lane that the session allows.
    void start(const LaneOptions& options, bool inline_allowed) {
        checksum_ = options.checksum;
        Link::HostChoice choice = options.host ? link_->hostChoice() : Link::HostChoice();
        std::shared_ptr<HostPeer> host = std::move(choice.peer);
        std::string host_reason = std::move(choice.reason);
        if (host != nullptr && !host->attached() && !maps_->whole()) {
            const PlanMaps::Count count = maps_->count();
            if (count.pending && !std::exchange(askedMaps_, true)) {
                return link_->host().whenMapped(
                    [self = shared_from_this(), options](const Status& status) {
                        status.ok() ? self->start(options, false) : self->fail(status);
                    });
            }
            host_reason = host->attachError() + ", and " + count.reason;
            host = nullptr;
        }
        {
            const MutexLock lock(mutex_);
            if (phase_ != Phase::WAITING) {
                return;  // canceled while it waited
            }
            phase_ = Phase::MOVING;
        }
        if (host == nullptr && !options.stream) {
            // The session may have gone since it was said to be there, or just now.
            Status session =
                choice.session.ok() ? link_->hostChoice().session : std::move(choice.session);
            completion_->fail(session.ok() ? Status::notSupported("lane host: " + host_reason +
                                                                  "; no other lane is allowed")
                                           : std::move(session));
            return;
        }
        if (host != nullptr) {
            startHost(host, inline_allowed);
        } else {
            startStream(inline_allowed);
        }
    }

    void fail(const Status& status) {
        {
            const MutexLock lock(mutex_);
            phase_ = Phase::ENDED;
        }
        completion_->fail(status);
    }

    void cancel() {
        std::shared_ptr<base::ChunkedJob> copy;
        std::shared_ptr<StreamJob> stream;
        bool notifying = false;
        {
            const MutexLock lock(mutex_);
            notifying = phase_ == Phase::NOTIFYING;
            if (phase_ == Phase::MOVING) {
                copy = copy_;
                stream = stream_;
                if (copy == nullptr && stream == nullptr) {
                    return;  // post has not got that far; it looks at the flag when it has
                }
            } else if (!notifying) {
                phase_ = Phase::ENDED;
            }
        }
        if (copy != nullptr) {
            copy->stop();
        } else if (stream != nullptr) {
            cancelStream(stream);
        } else if (notifying && !link_->withdraw(token_)) {
            // The data is in place; whether the peer hears of it is up to the peer.
            engine_->reactor.startTimer(
                Reactor::Clock::now() + kCancelPatience, [completion = completion_] {
                    completion->fail(Status::canceled(
                        "canceled; remote_unconfirmed: the notification was sent already and the "
                        "peer has not acknowledged it"));
                });
        } else {
            completion_->cancel();
        }
    }

    void help() {
        std::shared_ptr<base::ChunkedJob> copy;
        {
            const MutexLock lock(mutex_);
            copy = copy_;
        }
        const auto begin = Reactor::Clock::now();
        if (copy != nullptr && copy->progress()) {
            engine_->pollSet.progressed(begin);
        } else {
            engine_->pollSet.progress();
        }
    }

  private:
    enum class Phase : uint8_t { WAITING, MOVING, NOTIFYING, ENDED };

    void startHost(const std::shared_ptr<HostPeer>& host, bool inline_allowed) {
        if (inline_allowed || plan_.bytes == 0) {
            SegmentFailure failure;
            Status status = hostCopy(*host, plan_, maps_->all(), 0, plan_.bytes, *completion_,
                                     checksum_, failure);
            moved(std::move(status), {failure});
            return;
        }
        const uint64_t dense = plan_.segments / kSegmentsPerChunk;
        // Small ones in small pieces, so that two processors share them.
        const uint64_t chunk = plan_.bytes <= kSharedBytes ? kSmallChunk : base::kCopyChunk;
        const uint64_t wanted = std::max({plan_.bytes / chunk, dense, uint64_t{1}});
        const uint64_t size = (plan_.bytes + wanted - 1) / wanted;
        const uint64_t chunks = (plan_.bytes + size - 1) / size;
        auto job = base::ChunkedJob::create(
            chunks,
            [self = shared_from_this(), host, size](uint64_t index) {
                return self->copyChunk(*host, index, size);
            },
            [self = shared_from_this()] { self->copied(); });
        {
            const MutexLock lock(mutex_);
            copy_ = job;
        }
        // Who polls copies it himself: with pollers on all processors a thread of the pool would
        // only take theirs away.
        if (plan_.bytes <= kSharedBytes && engine_->pollSet.polled()) {
            engine_->pollSet.leaveBriefly(weak_from_this());
        } else {
            job->start(engine_->pool, engine_->pool.threads(), plan_.bytes > base::kBulkBytes);
        }
        if (completion_->cancelRequested()) {
            job->stop();
        }
    }

    void pollReady() override {}
    // Nobody polls, or for something else.
    void resumeReads() override {
        std::shared_ptr<base::ChunkedJob> copy;
        {
            const MutexLock lock(mutex_);
            copy = copy_;
        }
        if (copy != nullptr) {
            copy->start(engine_->pool, engine_->pool.threads(), false);
        }
    }

    bool copyChunk(HostPeer& host, uint64_t index, uint64_t size) {
        SegmentFailure failure;
        Status status =
            hostCopy(host, plan_, maps_->all(), index * size,
                     std::min((index + 1) * size, plan_.bytes), *completion_, checksum_, failure);
        if (status.ok()) {
            return true;
        }
        const MutexLock lock(mutex_);
        if (status_.ok()) {
            status_ = std::move(status);
        }
        failures_.push_back(failure);
        // The other chunks go on: what is not listed as failed must be in place.
        return !completion_->cancelRequested();
    }

    void copied() {
        Status status;
        std::vector<SegmentFailure> failures;
        {
            const MutexLock lock(mutex_);
            copy_.reset();
            status = status_;
            failures.swap(failures_);
        }
        if (completion_->cancelRequested()) {  // the failures do not name what was dropped
            status = Status::canceled("canceled");
        }
        moved(std::move(status), std::move(failures));
    }

    void startStream(bool inline_allowed) {
        GrantsPtr grants = link_->grants();
        if (grants == nullptr) {
            return fail(Status::notFound("the metadata of agent \"" + link_->peer().name +
                                         "\" is no longer known"));
        }
        if (plan_.bytes == 0) {
            return moved({}, {});
        }
        if (memory_->parts == nullptr || !memory_->parts->kept() ||
            memory_->parts->grants() != grants) {
            memory_->parts = std::make_shared<StreamParts>(plan_, std::move(grants), checksum_);
        }
        const uint64_t bytes = plan_.bytes;  // the plan may be gone once it has started
        const auto job =
            base::makeRecycled<StreamJob>(memory_->jobs, bytes, memory_->parts, shared_from_this());
        {
            const MutexLock lock(mutex_);
            stream_ = job;
        }
        link_->stream().start(job, inline_allowed && bytes <= kInlineStreamBytes ? bytes : 0);
        if (completion_->cancelRequested()) {
            cancelStream(job);
        }
    }

    void streamed(Status status, std::vector<SegmentFailure> failures) override {
        {
            const MutexLock lock(mutex_);
            stream_.reset();
        }
        moved(std::move(status), std::move(failures));
    }

    void cancelStream(const std::shared_ptr<StreamJob>& job) {
        const Status why = Status::canceled("canceled");
        link_->stream().cancel(job, why);
        if (op_ == OpType::READ) {
            // Nothing changes here any more, and there is nothing to confirm.
            job->abandon(why);
            return;
        }
        engine_->reactor.startTimer(
            Reactor::Clock::now() + kCancelPatience, [weak = std::weak_ptr(job)] {
                if (const auto late = weak.lock()) {
                    late->abandon(Status::canceled(
                        "canceled; remote_unconfirmed: the peer has not acknowledged it"));
                }
            });
    }

    // The data has been moved, or not.
    void moved(Status status, std::vector<SegmentFailure> failures) {
        if (!status.ok()) {
            if (status.code() == ErrorCode::CANCELED) {
                failures.clear();
            }
            completion_->fail(named(std::move(status), link_->peer().name), std::move(failures));
            return;
        }
        if (!notify_) {
            completion_->succeed();
            return;
        }
        {
            const MutexLock lock(mutex_);
            phase_ = Phase::NOTIFYING;
        }
        // Nothing of the transfer is touched any more: cancel may end it at any time.
        Status sent = link_->send(
            std::move(notification_),
            [completion = completion_](const Status& outcome) {
                outcome.ok() ? completion->succeed() : completion->fail(outcome);
            },
            &token_);
        if (!sent.ok()) {
            completion_->fail(std::move(sent));
        }
    }

    const std::shared_ptr<EngineImpl> engine_;
    const std::shared_ptr<Link> link_;
    const TransferPlan& plan_;  // valid until the completion is final
    const std::shared_ptr<const PlanMaps> maps_;
    const std::shared_ptr<PostMemory> memory_;
    const OpType op_;
    const CompletionPtr completion_;
    std::string notification_;
    bool notify_ = false;
    bool checksum_ = false;
    bool askedMaps_ = false;
    std::atomic<uint64_t> token_{0};  // of the notification, once it is queued

    Mutex mutex_;
    Phase phase_ NIXL_GUARDED_BY(mutex_) = Phase::WAITING;
    std::shared_ptr<base::ChunkedJob> copy_ NIXL_GUARDED_BY(mutex_);
    std::shared_ptr<StreamJob> stream_ NIXL_GUARDED_BY(mutex_);
    Status status_ NIXL_GUARDED_BY(mutex_);
    std::vector<SegmentFailure> failures_ NIXL_GUARDED_BY(mutex_);
};

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

// Lane `host` or `stream`. Either may fall back to the other where that is allowed too: what a
// session permits is known only once it is open.
class NetworkLane final : public Lane {
  public:
    NetworkLane(std::shared_ptr<EngineImpl> engine, const LaneOptions& options, bool host)
        : engine_(std::move(engine)), options_(options), host_(host) {}

    const char* name() const override { return host_ ? "host" : "stream"; }

    LaneOffer offer(const TransferPlan& plan) override {
        if (plan.peer.self) {
            return {0, "the peer is this agent itself"};
        }
        if (!isDram(plan.localRegions) || !isDram(plan.remoteRegions)) {
            return {0, "moves host memory only"};
        }
        const auto link = engine_->find({std::string(plan.peer.name), plan.peer.incarnation});
        if (link == nullptr || !link->hasMetadata()) {
            return {0, "no connection info of the peer"};
        }
        if (!host_) {
            return {40, "a socket to the peer"};
        }
        const auto endpoints = link->endpoints();
        if (!endpoints || endpoints->bootId != engine_->bootId) {
            return {0, "the peer is on another host"};
        }
        if (link->ready() && link->host().peer() == nullptr) {
            return {0, link->host().choice().reason};
        }
        return {80, "the peer is on this host"};
    }

    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        auto link = engine_->find({std::string(plan.peer.name), plan.peer.incarnation});
        if (link == nullptr) {
            return Status::notFound("agent \"" + std::string(plan.peer.name) +
                                    "\" has been removed");
        }
        LaneOptions options = options_;
        options.host = host_;
        options.stream = !host_ || options_.fallBack;
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<RemoteTransfer>(engine_, std::move(link), plan, options));
    }

  private:
    const std::shared_ptr<EngineImpl> engine_;
    const LaneOptions options_;
    const bool host_;
};

}  // namespace

std::vector<std::unique_ptr<Lane>> makeNetworkLanes(const std::shared_ptr<EngineImpl>& engine,
                                                    const LaneOptions& options) {
    std::vector<std::unique_ptr<Lane>> lanes;
    if (options.host) {
        lanes.push_back(std::make_unique<NetworkLane>(engine, options, true));
    }
    if (options.stream) {
        lanes.push_back(std::make_unique<NetworkLane>(engine, options, false));
    }
    return lanes;
}

}  // namespace nixl::peer
