// See transfer.h.
#include "agent/transfer.h"

#include <algorithm>

namespace nixl::agent {
namespace {

using Clock = std::chrono::steady_clock;

// Rounded up: what took any time never shows as none.
std::chrono::microseconds toMicroseconds(Clock::duration duration) {
    return std::chrono::ceil<std::chrono::microseconds>(duration);
}

// The regions that the runs touch, each once.
template <typename Get>
std::vector<uint32_t> usedRegions(const std::vector<PlanRun>& runs, size_t count, const Get& get) {
    std::vector<uint32_t> used;
    if (count == 1) {
        if (!runs.empty()) {
            used.push_back(0);
        }
        return used;
    }
    std::vector<bool> seen(count);
    for (const PlanRun& run : runs) {
        const uint32_t region = get(run);
        if (!seen[region]) {
            seen[region] = true;
            used.push_back(region);
        }
    }
    return used;
}

}  // namespace

uint64_t TransferState::begin() {
    error = {};
    cancelReason = {};
    segmentFailures.clear();
    startTime = std::chrono::system_clock::now();
    started = Clock::now();
    busy.store(true, std::memory_order_release);
    word.store(PENDING, std::memory_order_release);
    series->posted();
    return ++number;
}

bool TransferState::conclude(uint64_t post,
                             Word end,
                             Status status,
                             std::vector<SegmentFailure> failures) {
    {
        MutexLock lock(mutex);
        if (number != post || word.load(std::memory_order_relaxed) != PENDING) {
            agent->lateEnds.fetch_add(1, std::memory_order_relaxed);
            return false;
        }
        ended = Clock::now();
        if (end == CANCELED && !cancelReason.ok()) {
            end = FAILED;
            const std::string how = status.message();
            status = std::move(cancelReason);
            if (how.find("remote_unconfirmed") != std::string::npos) {
                status = Status(status.code(), status.message() + "; " + how);
            }
        }
        if (end != DONE && status.ok()) {
            status = Status(ErrorCode::UNKNOWN, "the backend gave no reason");
        }
        series->ended(end == DONE       ? telemetry::End::DONE
                      : end == CANCELED ? telemetry::End::CANCELED
                                        : telemetry::End::FAILED,
                      bytes, ended - started);
        error = std::move(status);
        segmentFailures = std::move(failures);
        if (end != DONE) {
            series->error(error.code());
            agent->failures.fetch_add(1, std::memory_order_relaxed);
        }
        word.store(end, std::memory_order_seq_cst);
    }
    if (waiters.load(std::memory_order_seq_cst) != 0) {
        base::futexWakeAll(word);
    }
    agent->signal().raise();
    return true;
}

base::WaitResult TransferState::wait(base::Deadline deadline) {
    waiters.fetch_add(1, std::memory_order_seq_cst);
    const base::WaitResult result = base::futexWait(word, PENDING, deadline);
    waiters.fetch_sub(1, std::memory_order_relaxed);
    return result;
}

uint64_t TransferState::pendingSince(Clock::time_point when) const {
    MutexLock lock(mutex);
    return word.load(std::memory_order_relaxed) == PENDING && started <= when ? number : 0;
}

// Carries the end of one post from the backend to the user. The transfer lives as long as `busy`.
class PostCompletion final : public Completion {
  public:
    PostCompletion(Transfer* transfer, uint64_t post, std::optional<std::string> self_notification)
        : transfer_(transfer),
          state_(transfer->state_),
          post_(post),
          notification_(std::move(self_notification)) {}

    void tellUser(const Status& why, const std::vector<SegmentFailure>& failures) override {
        state_->conclude(post_, TransferState::FAILED, Status(why),
                         std::vector<SegmentFailure>(failures));
    }

  protected:
    void onFinal(XferState state,
                 Status&& status,
                 std::vector<SegmentFailure>&& failures) override {
        end_ = state == XferState::DONE     ? TransferState::DONE
               : state == XferState::FAILED ? TransferState::FAILED
                                            : TransferState::CANCELED;
        status_ = std::move(status);
        failures_ = std::move(failures);
        transfer_->unpinAll();
        if (end_ == TransferState::DONE && notification_.has_value()) {
            const std::shared_ptr<AgentShared>& agent = state_->agent;
            agent->deliver(agent->self(), std::move(*notification_), nullptr);
        }
    }
    void afterFinal() override {
        transfer_ = nullptr;
        state_->busy.store(false, std::memory_order_release);
        // From here on there may be another post.
        state_->conclude(post_, end_, std::move(status_), std::move(failures_));
    }

  private:
    Transfer* transfer_;
    const std::shared_ptr<TransferState> state_;
    const uint64_t post_;
    std::optional<std::string> notification_;
    TransferState::Word end_ = TransferState::FAILED;
    Status status_;
    std::vector<SegmentFailure> failures_;
};

Transfer::Transfer(Parts parts, const std::shared_ptr<AgentShared>& agent)
    : parts_(std::move(parts)), state_(std::make_shared<TransferState>(agent)) {
    const auto& runs = parts_.runs.runs;
    if (!parts_.local->uses.empty()) {
        usedLocal_ = usedRegions(runs, parts_.local->uses.size(),
                                 [](const PlanRun& run) { return run.localRegion; });
    }
    if (!parts_.remote->uses.empty()) {
        usedRemote_ = usedRegions(runs, parts_.remote->uses.size(),
                                  [](const PlanRun& run) { return run.remoteRegion; });
    }
    plan_.op = parts_.op;
    const std::shared_ptr<Peer>& peer = parts_.remote->peer;
    const peer::Identity& other = peer ? peer->identity : agent->self();
    plan_.peer = {other.name, other.incarnation, peer == nullptr};
    plan_.localRegions = parts_.local->regions;
    plan_.remoteRegions = parts_.remote->regions;
    plan_.runs = runs;
    plan_.bytes = parts_.runs.bytes;
    plan_.segments = parts_.runs.segments;
    plan_.descriptors = parts_.runs.descriptors;
    Backend& backend = *parts_.backend->backend;
    coreNotifies_ = !backend.supportsNotif();
}

Result<std::unique_ptr<Transfer>> Transfer::create(Parts parts,
                                                   const std::shared_ptr<AgentShared>& agent) {
    std::unique_ptr<Transfer> transfer(new Transfer(std::move(parts), agent));
    Backend& backend = *transfer->parts_.backend->backend;
    NIXL_RETURN_IF_ERROR(transfer->pinAll());  // the backend looks at its memories
    Result<std::unique_ptr<BackendTransfer>> inner = backend.prepareTransfer(transfer->plan_);
    transfer->unpinAll();
    if (!inner.ok()) {
        return inner.status();
    }
    MutexLock lock(transfer->mutex_);
    transfer->inner_ = std::move(inner).value();
    return transfer;
}

Transfer::~Transfer() = default;

Status Transfer::pinAll() {
    const auto pin = [](const std::vector<memory::RegionUse>& uses,
                        const std::vector<uint32_t>& used, size_t& pinned) {
        for (; pinned < used.size(); ++pinned) {
            if (!uses[used[pinned]].region->pin()) {
                return false;
            }
        }
        return true;
    };
    const auto unpin = [](const std::vector<memory::RegionUse>& uses,
                          const std::vector<uint32_t>& used, size_t pinned) {
        for (size_t i = 0; i < pinned; ++i) {
            uses[used[i]].region->unpin();
        }
    };
    size_t local = 0;
    size_t remote = 0;
    if (pin(parts_.local->uses, usedLocal_, local) &&
        pin(parts_.remote->uses, usedRemote_, remote)) {
        return {};
    }
    unpin(parts_.local->uses, usedLocal_, local);
    unpin(parts_.remote->uses, usedRemote_, remote);
    if (local == usedLocal_.size()) {
        const memory::Region& gone = *parts_.remote->uses[usedRemote_[remote]].region;
        if (gone.replaced()) {
            return Status::notFound(
                std::string(memTypeName(gone.type)) + " device " + std::to_string(gone.deviceId) +
                (gone.metadata.empty() ? "" : " (\"" + gone.metadata + "\")") +
                " has been registered anew for something else since this transfer was prepared");
        }
    }
    return Status::notFound(std::string("transfer with agent \"") + peerName() +
                            "\": memory of its " +
                            (local < usedLocal_.size() ? "local" : "remote") +
                            " side has been deregistered since it was prepared");
}

void Transfer::unpinAll() noexcept {
    for (const uint32_t index : usedLocal_) {
        parts_.local->uses[index].region->unpin();
    }
    for (const uint32_t index : usedRemote_) {
        parts_.remote->uses[index].region->unpin();
    }
}

telemetry::Series& Transfer::series() {
    if (state_->series == nullptr) {
        const std::string_view peer =
            parts_.backend->storage() ? std::string_view() : plan_.peer.name;
        state_->series =
            state_->agent->series().find(parts_.backend->name, inner_->lane(), peer, plan_.op);
        state_->bytes = plan_.bytes;
    }
    return *state_->series;
}

Status Transfer::refused(Status why) {
    const MutexLock lock(state_->mutex);
    series().error(why.code());
    return why;
}

Status Transfer::post(std::optional<std::string_view> notification) {
    MutexLock lock(mutex_);
    if (word() == TransferState::PENDING || busy()) {
        return {ErrorCode::REPOST_ACTIVE,
                "transfer with agent \"" + peerName() + "\" is still in progress"};
    }
    if (parts_.remote->peer && parts_.remote->peer->gone.load(std::memory_order_acquire)) {
        return refused(Status::disconnected("agent \"" + peerName() +
                                            "\" was removed or restarted since this was prepared"));
    }
    if (Status pinned = pinAll(); !pinned.ok()) {
        return refused(std::move(pinned));
    }
    if (!notification.has_value() && parts_.notification.has_value()) {
        notification = *parts_.notification;
    } else if (notification.has_value() && parts_.notification.has_value()) {
        parts_.notification->assign(
            *notification);  // for later posts too, as existing code expects
    } else if (notification.has_value()) {
        parts_.notification.emplace(*notification);
    }
    uint64_t number = 0;
    Clock::time_point start;
    {
        MutexLock state_lock(state_->mutex);
        series();
        number = state_->begin();
        start = state_->started;
    }
    std::optional<std::string> own;
    if (coreNotifies_ && notification.has_value()) {
        own.emplace(*notification);
        notification.reset();
    }
    current_.reset();  // the last post has ended: its memory is used again
    auto completion =
        base::makeRecycled<PostCompletion>(completions_, this, number, std::move(own));
    current_ = completion;
    Status status = inner_->post(std::move(completion), notification.value_or(std::string_view()),
                                 notification.has_value());
    const auto spent = Clock::now() - start;
    if (!status.ok()) {
        unpinAll();
        current_.reset();
        state_->busy.store(false, std::memory_order_release);
        state_->conclude(number, TransferState::FAILED, status, {});
        return status;
    }
    MutexLock state_lock(state_->mutex);
    state_->postDuration = spent;
    state_->inlinePost = word() != TransferState::PENDING;
    return {};
}

void Transfer::requestCancel(uint64_t post, Status reason) {
    if (post == 0 || state_->pendingPost() != post) {
        return;
    }
    MutexLock lock(mutex_);  // no other post begins
    {
        MutexLock state_lock(state_->mutex);
        if (state_->number != post || word() != TransferState::PENDING) {
            return;
        }
        state_->cancelReason = std::move(reason);
    }
    if (current_ != nullptr && !current_->final()) {
        current_->requestCancel();
        inner_->cancel();
    }
}

void Transfer::cancel(uint64_t post, base::Deadline limit, Status reason) {
    requestCancel(post, std::move(reason));
    while (post != 0 && state_->pendingPost() == post) {
        if (Clock::now() >= limit) {
            state_->conclude(post, TransferState::CANCELED,
                             Status::canceled("canceled; the backend has not confirmed that it "
                                              "stopped, so its memory stays busy until it does "
                                              "(remote_unconfirmed)"),
                             {});
            return;
        }
        progress();
        const base::Deadline soon = Clock::now() + std::chrono::milliseconds(2);
        state_->wait(std::min(limit, parts_.backend->backend->needsProgress() ? soon : limit));
    }
}

void Transfer::progress() {
    Backend& backend = *parts_.backend->backend;
    if (backend.needsProgress()) {
        backend.progress();
    }
    if (mutex_.tryLock()) {
        if (word() == TransferState::PENDING) {
            inner_->help();
        }
        mutex_.unlock();
    }
}

Status Transfer::error() const {
    std::vector<DescriptorFailure> failed = failures();
    Status error;
    {
        MutexLock lock(state_->mutex);
        error = state_->error;
    }
    if (error.ok() || failed.empty() || error.descriptorIndex() >= 0) {
        return error;
    }
    const auto index = static_cast<int64_t>(failed.front().index);
    return {error.code(),
            error.message() + " (descriptor " + std::to_string(index) +
                (failed.size() > 1 ? " and " + std::to_string(failed.size() - 1) + " more" : "") +
                ")",
            error.systemErrno(), index};
}

std::vector<DescriptorFailure> Transfer::failures() const {
    std::vector<SegmentFailure> segments;
    {
        MutexLock lock(state_->mutex);
        segments = state_->segmentFailures;
    }
    return memory::mapFailures(parts_.runs, segments);
}

Result<TransferTelemetry> Transfer::telemetry() const {
    const uint32_t now = word();
    if (now == TransferState::UNPOSTED) {
        return Status(ErrorCode::NOT_POSTED, "no figures: the transfer was never posted");
    }
    if (now == TransferState::PENDING) {
        return Status(ErrorCode::NO_TELEMETRY, "the transfer is still in progress");
    }
    MutexLock lock(state_->mutex);
    TransferTelemetry figures;
    figures.startTime = state_->startTime;
    figures.postDuration = toMicroseconds(state_->postDuration);
    // A transfer that ended inside post took no less than the post.
    figures.xferDuration =
        std::max(toMicroseconds(state_->ended - state_->started), figures.postDuration);
    figures.totalBytes = plan_.bytes;
    figures.descCount = plan_.descriptors;
    return figures;
}

TransferProgress Transfer::howFar() const {
    const uint32_t now = word();
    TransferProgress out{0, plan_.bytes};
    if (now == TransferState::UNPOSTED) {
        return out;
    }
    if (now == TransferState::DONE) {
        out.bytesDone = plan_.bytes;
        return out;
    }
    MutexLock lock(mutex_);
    out.bytesDone = std::min(inner_->bytesDone().value_or(0), plan_.bytes);
    return out;
}

Transfer::View Transfer::view(Clock::time_point now) const {
    View out;
    out.peer = parts_.backend->storage() ? std::string() : peerName();
    out.op = plan_.op;
    out.bytes = plan_.bytes;
    MutexLock lock(state_->mutex);
    out.word = word();
    // Of a transfer that was never posted the lane is not asked.
    out.lane = state_->series != nullptr ? std::string_view(state_->series->lane) : "";
    if (out.word == TransferState::PENDING) {
        out.age = now - state_->started;
    } else if (out.word != TransferState::UNPOSTED) {
        out.age = now - state_->ended;
        out.took = state_->ended - state_->started;
    }
    out.age = std::max(out.age, std::chrono::nanoseconds(0));  // `now` may be before it
    return out;
}

std::string Transfer::line(Clock::time_point now) const {
    static constexpr const char* kWords[] = {"not posted", "pending", "done", "failed", "canceled"};
    const View seen = view(now);
    const auto ms = [](std::chrono::nanoseconds time) {
        const auto us = std::chrono::duration_cast<std::chrono::microseconds>(time).count();
        const std::string rest = std::to_string(us % 1000);
        return std::to_string(us / 1000) + "." + std::string(3 - rest.size(), '0') + rest + " ms";
    };
    std::string out = std::string(opName(plan_.op)) + " with " + peerName() + " by " +
                      parts_.backend->name + (seen.lane.empty() ? "" : " ") +
                      std::string(seen.lane) + ": " + kWords[seen.word];
    if (seen.word == TransferState::PENDING) {
        out += " for " + ms(seen.age) + ", " + std::to_string(howFar().bytesDone) + " of " +
               std::to_string(plan_.bytes) + " bytes done";
    } else {
        if (seen.word != TransferState::UNPOSTED) {
            out += " in " + ms(seen.took) + ", " + ms(seen.age) + " ago";
        }
        out += ", " + std::to_string(plan_.bytes) + " bytes";
    }
    out += " in " + std::to_string(plan_.segments) + " segments";
    if (seen.word == TransferState::FAILED || seen.word == TransferState::CANCELED) {
        out += ": " + error().message();
    }
    return out;
}

TransferExplanation Transfer::explain() const {
    TransferExplanation out;
    out.backend = parts_.backend->name;
    out.descriptors = plan_.descriptors;
    out.segments = plan_.segments;
    out.bytes = plan_.bytes;
    {
        MutexLock lock(mutex_);
        TransferDescription description = inner_->describe();
        out.lane = std::move(description.lane);
        out.reason = std::move(description.reason);
        out.device = std::move(description.device);
    }
    MutexLock lock(state_->mutex);
    out.lastPostInline = state_->inlinePost;
    return out;
}

TransferCost Transfer::estimate() const {
    MutexLock lock(mutex_);
    if (std::optional<TransferCost> cost = inner_->estimateCost(); cost.has_value()) {
        return *cost;
    }
    TransferCost cost;  // what a plain device does: 1 GB/s and 10 us a segment
    cost.duration = std::chrono::microseconds(plan_.bytes / 1000 + plan_.segments * 10);
    cost.margin = cost.duration;
    cost.method = "1 GB/s and 10 us a segment; the backend has no estimate of its own";
    return cost;
}

}  // namespace nixl::agent
