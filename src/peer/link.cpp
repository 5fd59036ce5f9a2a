// See link.h: what holds its parts together, and how they end.
#include "peer/link.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/log.h"
#include "peer/engine_impl.h"

namespace nixl::peer {

Link::Link(EngineImpl& engine, Identity peer) : engine_(engine), peer_(std::move(peer)) {}

std::shared_ptr<Link> Link::make(EngineImpl& engine, Identity peer) {
    const std::shared_ptr<Link> link(new Link(engine, std::move(peer)));
    link->pool_ = std::make_shared<StreamPool>(
        StreamPoolConfig{link->peer_.name, engine.config.streamConnections,
                         engine.config.tcpCongestion},
        engine.dataLoop, engine.access, [weak = std::weak_ptr(link)] {
            if (const auto self = weak.lock()) {
                self->wantData();
            }
        });
    link->control_ = std::make_shared<ControlLink>(
        ControlLink::Context{link->peer_.name, engine.reactor, engine.pollSet,
                             SessionLimits{engine.config.peerTimeout}},
        link);
    link->attachment_ = std::make_shared<HostAttachment>(
        HostAttachment::Context{link->peer_.name, engine.reactor, engine.pool, engine.hostTarget,
                                engine.access, engine.weak_from_this()},
        link);
    return link;
}

Link::~Link() = default;

void Link::setMetadata(std::optional<Endpoints> endpoints, GrantsPtr grants) {
    const MutexLock lock(mutex_);
    if (endpoints) {
        endpoints_ = std::move(endpoints);
    }
    grants_ = std::move(grants);
}

bool Link::hasMetadata() {
    const MutexLock lock(mutex_);
    return grants_ != nullptr;
}

std::optional<Endpoints> Link::endpoints() {
    const MutexLock lock(mutex_);
    return endpoints_;
}

bool Link::hasEndpoints(const Key& boot_id) {
    const MutexLock lock(mutex_);
    return endpoints_ && endpoints_->bootId == boot_id;
}

GrantsPtr Link::grants() {
    const MutexLock lock(mutex_);
    return grants_;
}

Link::Counts Link::counts() {
    Counts counts;
    counts.connections = control_->up() ? 1 : 0;
    counts.notifications = control_->waiting();
    counts.connections += pool_->connections();
    return counts;
}

Status Link::send(std::string message, Done done, std::atomic<uint64_t>* its_token) {
    bool dial_now = false;
    {
        const MutexLock lock(mutex_);
        NIXL_RETURN_IF_ERROR(gone_);
        if (!endpoints_ && !control_->up()) {
            return Status::notFound("agent \"" + peer_.name +
                                    "\" is unknown and has no session with this one");
        }
        NIXL_RETURN_IF_ERROR(control_->send(std::move(message), std::move(done), its_token));
        dial_now = !control_->up();
    }
    if (dial_now) {
        want();
    }
    return {};
}

void Link::whenReady(Done ready) {
    bool dial_now = false;
    Status at_once;
    {
        const MutexLock lock(mutex_);
        if (!gone_.ok()) {
            at_once = gone_;
        } else if (!endpoints_ && !control_->up()) {
            at_once = Status::notFound("agent \"" + peer_.name +
                                       "\" is unknown and has no session with this one");
        } else if (!ready_.load(std::memory_order_relaxed)) {
            dial_now = !control_->up();
            waiting_.push_back(std::exchange(ready, nullptr));
        }
    }
    if (ready) {
        ready(at_once);
    } else if (dial_now) {
        want();
    }
}

void Link::notified(std::string message, std::shared_ptr<void> credit) {
    engine_.dataLoop.acquireMoved();
    engine_.access.deliver(peer_, std::move(message), std::move(credit));
}

void Link::onFrame(uint64_t connection,
                   FrameType type,
                   std::string_view body,
                   const std::vector<base::Fd>& descriptors) {
    attachment_->onFrame(connection, type, body, descriptors);
}

bool Link::sendFrame(uint64_t connection,
                     FrameType type,
                     std::string_view body,
                     std::vector<base::Fd> descriptors) {
    return control_->sendFrame(connection, type, body, std::move(descriptors));
}

void Link::sessionEnded(const Status& why) {
    {
        const MutexLock lock(mutex_);
        if (detached_) {
            return;  // the engine may be gone
        }
    }
    lost(why);
}

void Link::ticked() {
    pool_->expire(Reactor::Clock::now(), engine_.config.peerTimeout);
}

bool Link::wanted() {
    if (!waiting_.empty() || control_->waiting() > 0) {
        return true;
    }
    return pool_->waiting();
}

// The connection broke; the session may go on over another.
void Link::controlLost(const Status& why) {
    const bool violation = why.code() == ErrorCode::INVALID_PARAM;
    bool dial_now = false;
    {
        const MutexLock lock(mutex_);
        if (!control_->drop()) {
            return;
        }
        ready_.store(false, std::memory_order_release);
        dial_now = endpoints_ && wanted();
    }
    attachment_->disconnected();
    if (violation) {
        base::log(LogLevel::WARN,
                  "session with agent \"" + peer_.name + "\": " + why.message() + "; closed");
        return lost(Status::disconnected("agent \"" + peer_.name +
                                         "\" violates the protocol: " + why.message()));
    }
    if (attachment_->processHasEnded()) {
        return processEndedNow();
    }
    if (attachment_->onlyItsEndCloses()) {
        return lost(Status::disconnected("agent \"" + peer_.name + "\" is gone: " + why.message()));
    }
    if (dial_now) {
        want();
    }
    if (graceTimer_ == 0) {
        graceTimer_ = engine_.reactor.startTimer(
            Reactor::Clock::now() + engine_.config.peerTimeout,
            [weak = weak_from_this(), why = why.message()] {
                if (const auto link = weak.lock()) {
                    link->graceTimer_ = 0;
                    if (!link->up()) {
                        link->lost(Status::disconnected("agent \"" + link->peer_.name +
                                                        "\" has not come back: " + why));
                    }
                }
            });
    }
}

// The peer is gone, as far as this agent can tell.
void Link::lost(const Status& why) {
    const auto keep = shared_from_this();
    if (dialer_ != nullptr) {
        std::exchange(dialer_, nullptr)->cancel();
    }
    if (dataDialer_ != nullptr) {
        std::exchange(dataDialer_, nullptr)->cancel();
    }
    for (uint64_t* timer : {&retryTimer_, &graceTimer_, &dataRetryTimer_}) {
        if (*timer != 0) {
            engine_.reactor.stopTimer(std::exchange(*timer, 0));
        }
    }
    wantedSince_.reset();
    dataWantedSince_.reset();
    backoff_ = {};
    std::vector<Done> waiting;
    bool tell = false;
    {
        const MutexLock lock(mutex_);
        // Who detaches a link takes the peer from the backends himself, and may have added it anew.
        tell = control_->fail(why) && !detached_;
        ready_.store(false, std::memory_order_release);
        waiting.swap(waiting_);
    }
    auto unmapped = attachment_->sessionLost();
    std::move(unmapped.begin(), unmapped.end(), std::back_inserter(waiting));
    pool_->fail(why);
    control_->dispatch();
    for (const Done& done : waiting) {
        done(why);
    }
    if (tell) {
        engine_.access.peerLost(peer_, why);
    }
    engine_.forgetUnknown(keep);
}

void Link::close(const Status& why, const std::string& close_reason) {
    engine_.reactor.run([self = shared_from_this(), why, close_reason] {
        {
            const MutexLock lock(self->mutex_);
            if (self->detached_) {
                return;
            }
        }
        base::ByteWriter body;
        Reject{RejectCode::CLOSING, close_reason}.encode(body);
        self->control_->bye(body.bytes());
        self->detachEngine(why);
    });
}

void Link::detachEngine(const Status& why) {
    {
        // Before what waits is ended: nothing may begin to wait behind it.
        const MutexLock lock(mutex_);
        detached_ = true;
        gone_ = why;
    }
    lost(why);
}

}  // namespace nixl::peer
