// See post_operation.h.
#include "peer/post_operation.h"

#include <algorithm>
#include <utility>

#include "lanes/host/copy.h"

namespace nixl::peer {

namespace {

using std::chrono::milliseconds;

constexpr uint64_t kSegmentsPerChunk = 512;
constexpr uint64_t kSharedBytes = 4 << 20;
constexpr uint64_t kSmallChunk = 512 << 10;
// Posts up to this size are sent by the caller, larger ones by the stream threads.
constexpr uint64_t kInlineStreamBytes = 64 << 10;
constexpr milliseconds kCancelPatience{100};

}  // namespace

Status named(Status status, const std::string& peer) {
    if (status.code() == ErrorCode::CANCELED || status.message().find(peer) != std::string::npos) {
        return status;
    }
    return {status.code(), "agent \"" + peer + "\": " + status.message(), status.systemErrno()};
}

void PostOperation::notify(std::string_view message) {
    notification_ = message;
    notify_ = true;
}

void PostOperation::start(const LaneOptions& options, bool inline_allowed) {
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

void PostOperation::fail(const Status& status) {
    {
        const MutexLock lock(mutex_);
        phase_ = Phase::ENDED;
    }
    completion_->fail(status);
}

void PostOperation::cancel() {
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

void PostOperation::help() {
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

void PostOperation::startHost(const std::shared_ptr<HostPeer>& host, bool inline_allowed) {
    if (inline_allowed || plan_.bytes == 0) {
        SegmentFailure failure;
        Status status =
            hostCopy(*host, plan_, maps_->all(), 0, plan_.bytes, *completion_, checksum_, failure);
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

void PostOperation::resumeReads() {
    std::shared_ptr<base::ChunkedJob> copy;
    {
        const MutexLock lock(mutex_);
        copy = copy_;
    }
    if (copy != nullptr) {
        copy->start(engine_->pool, engine_->pool.threads(), false);
    }
}

bool PostOperation::copyChunk(HostPeer& host, uint64_t index, uint64_t size) {
    SegmentFailure failure;
    Status status =
        hostCopy(host, plan_, maps_->all(), index * size, std::min((index + 1) * size, plan_.bytes),
                 *completion_, checksum_, failure);
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

void PostOperation::copied() {
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

void PostOperation::startStream(bool inline_allowed) {
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

void PostOperation::streamed(Status status, std::vector<SegmentFailure> failures) {
    {
        const MutexLock lock(mutex_);
        stream_.reset();
    }
    moved(std::move(status), std::move(failures));
}

void PostOperation::cancelStream(const std::shared_ptr<StreamJob>& job) {
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

void PostOperation::moved(Status status, std::vector<SegmentFailure> failures) {
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

}  // namespace nixl::peer
