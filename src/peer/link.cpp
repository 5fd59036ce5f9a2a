// See link.h: the session and its control connection.
#include "peer/link.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include <sys/epoll.h>

#include "base/log.h"
#include "peer/engine_impl.h"

namespace nixl::peer {

namespace {

constexpr size_t kReadSize = 64 << 10;
constexpr int kReadRounds = 16;  // before others get their turn

// How many descriptors a frame brings.
size_t descriptorsOf(FrameType type, std::string_view body) {
    if (type == FrameType::HOST_OFFER) {
        return base::kEarlyDescriptors;  // or none
    }
    return type == FrameType::MAP_REPLY ? mapReplyFiles(body) : 0;
}

}  // namespace

Link::Link(EngineImpl& engine, Identity peer)
    : engine_(engine),
      peer_(std::move(peer)),
      session_(peer_.name, SessionLimits{engine.config.peerTimeout}) {}

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

GrantsPtr Link::grants() {
    const MutexLock lock(mutex_);
    return grants_;
}

bool Link::up() {
    const MutexLock lock(mutex_);
    return channel_ != nullptr;
}

std::optional<Earlier> Link::earlier() {
    const MutexLock lock(mutex_);
    if (session_.resume().epoch == 0) {
        return std::nullopt;
    }
    return Earlier{session_.resume(), key_};
}

std::optional<base::Digest> Link::sessionKey() {
    const MutexLock lock(mutex_);
    return channel_ != nullptr ? std::optional(key_) : std::nullopt;
}

Link::Counts Link::counts() {
    Counts counts;
    {
        const MutexLock lock(mutex_);
        counts.connections = channel_ ? 1 : 0;
        counts.notifications = session_.waiting();
    }
    counts.connections += pool_->connections();
    return counts;
}

Status Link::send(std::string message, Done done, std::atomic<uint64_t>* its_token) {
    bool dial_now = false;
    {
        const MutexLock lock(mutex_);
        NIXL_RETURN_IF_ERROR(gone_);
        if (channel_ == nullptr && !endpoints_) {
            return Status::notFound("agent \"" + peer_.name +
                                    "\" is unknown and has no session with this one");
        }
        const uint64_t token = nextToken_++;
        NIXL_RETURN_IF_ERROR(session_.send(std::move(message), token));
        tokens_.emplace(token, std::move(done));
        if (its_token != nullptr) {
            its_token->store(token);
        }
        flush();
        dial_now = channel_ == nullptr;
    }
    if (dial_now) {
        want();
    }
    return {};
}

bool Link::withdraw(uint64_t token) {
    const MutexLock lock(mutex_);
    return session_.withdraw(token) && tokens_.erase(token) > 0;
}

void Link::whenReady(Done ready) {
    bool dial_now = false;
    Status at_once;
    {
        const MutexLock lock(mutex_);
        if (!gone_.ok()) {
            at_once = gone_;
        } else if (channel_ == nullptr && !endpoints_) {
            at_once = Status::notFound("agent \"" + peer_.name +
                                       "\" is unknown and has no session with this one");
        } else if (!ready_.load(std::memory_order_relaxed)) {
            dial_now = channel_ == nullptr;
            waiting_.push_back(std::exchange(ready, nullptr));
        }
    }
    if (ready) {
        ready(at_once);
    } else if (dial_now) {
        want();
    }
}

// Reads the control connection until it is empty.
Status Link::readControl() {
    char buffer[kReadSize];
    for (int round = 0; round < kReadRounds && channel_ != nullptr; ++round) {
        iovec vector{buffer, sizeof(buffer)};
        auto got = channel_->receive(&vector, 1);
        if (!got.ok()) {
            return got.status();
        }
        if (got.value() == 0) {
            return {};
        }
        NIXL_RETURN_IF_ERROR(session_.receive({buffer, got.value()}, Reactor::Clock::now()));
        collect();  // while the descriptors that came along are at hand
        if (got.value() < sizeof(buffer)) {
            return {};
        }
    }
    return {};
}

void Link::flush() {
    while (channel_ != nullptr) {
        if (outSent_ == out_.size()) {
            out_.clear();
            outSent_ = 0;
            session_.produce(out_, kReadSize);
            if (out_.empty()) {
                break;
            }
        }
        const iovec vector{out_.data() + outSent_, out_.size() - outSent_};
        std::vector<int> descriptors;
        for (const base::Fd& one : outDescriptors_) {
            descriptors.push_back(one.get());
        }
        auto put = channel_->sendWith(&vector, 1, descriptors);
        if (!put.ok() && !descriptors.empty()) {
            // Perhaps too many are under way in this system: the peer does without them.
            outDescriptors_.clear();
            put = channel_->send(&vector, 1);
        }
        if (!put.ok()) {
            break;  // the reactor sees the end of the connection and closes it
        }
        if (put.value() > 0) {
            outDescriptors_.clear();
        }
        outSent_ += put.value();
        if (outSent_ < out_.size()) {
            break;
        }
    }
    updateWatch(readWatched_, channel_ != nullptr && outSent_ < out_.size());
}

void Link::updateWatch(bool reading, bool writing) {
    if (watch_ != 0 && (reading != readWatched_ || writing != writeWatched_)) {
        readWatched_ = reading;
        writeWatched_ = writing;
        const uint32_t events = (reading ? EPOLLIN : 0U) | (writing ? EPOLLOUT : 0U);
        static_cast<void>(engine_.reactor.modify(watch_, events).ok());
    }
}

void Link::collect() {
    for (auto& event : session_.takeEvents()) {
        std::vector<base::Fd> descriptors;
        if (event.kind == Session::Event::Kind::FRAME && channel_ != nullptr) {
            descriptors = channel_->takeDescriptors(descriptorsOf(event.type, event.text));
        }
        events_.push_back(
            {session_.epoch(), connection_, std::move(event), std::move(descriptors)});
    }
}

// Handles events in their order, whichever thread brought them.
void Link::dispatch() {
    const auto keep = shared_from_this();
    while (true) {
        std::deque<Incoming> events;
        {
            const MutexLock lock(mutex_);
            collect();
            if (dispatching_ || events_.empty()) {
                return;
            }
            dispatching_ = true;
            events.swap(events_);
        }
        for (Incoming& one : events) {
            if (one.event.kind == Session::Event::Kind::DELIVER) {
                deliver(one.event, one.epoch);
            } else {
                handle(one);
            }
        }
        const MutexLock lock(mutex_);
        dispatching_ = false;
        flush();  // acknowledgements of what was delivered
    }
}

void Link::deliver(Session::Event& event, uint64_t epoch) {
    const uint64_t cost = event.token;
    std::shared_ptr<void> credit(static_cast<void*>(this),
                                 [weak = weak_from_this(), epoch, cost](void*) {
                                     if (const auto link = weak.lock()) {
                                         link->giveCredit(epoch, cost);
                                     }
                                 });
    engine_.dataLoop.acquireMoved();
    engine_.access.deliver(peer_, std::move(event.text), std::move(credit));
    const MutexLock lock(mutex_);
    session_.delivered(epoch, event.sequence);  // dispatch() sends the acknowledgement
}

void Link::giveCredit(uint64_t epoch, uint64_t cost) {
    const MutexLock lock(mutex_);
    session_.consumed(epoch, cost);
    creditOwed_ += cost;
    // Small amounts ride along with the next acknowledgement or heartbeat.
    if (creditOwed_ >= kCreditStep && !detached_) {
        creditOwed_ = 0;
        flush();
    }
}

void Link::handle(Incoming& incoming) {
    Session::Event& event = incoming.event;
    switch (event.kind) {
        case Session::Event::Kind::SENT: {
            Done done;
            {
                const MutexLock lock(mutex_);
                const auto found = tokens_.find(event.token);
                if (found != tokens_.end()) {
                    done = std::move(found->second);
                    tokens_.erase(found);
                }
            }
            if (done) {
                done(std::move(event.status));
            }
            break;
        }
        case Session::Event::Kind::FRAME:
            onFrame(incoming);
            break;
        case Session::Event::Kind::BYE:
            engine_.reactor.run([self = shared_from_this(), connection = incoming.connection,
                                 why = event.status] { self->onBye(connection, why); });
            break;
        case Session::Event::Kind::DELIVER:
            break;
    }
}

void Link::onFrame(const Incoming& incoming) {
    {
        const MutexLock lock(mutex_);
        if (incoming.connection != connection_) {
            return;  // of a connection that has been replaced
        }
    }
    attachment_->onFrame(incoming.connection, incoming.event.type, incoming.event.text,
                         incoming.descriptors);
}

bool Link::sendFrame(uint64_t connection,
                     FrameType type,
                     std::string_view body,
                     std::vector<base::Fd> descriptors) {
    const MutexLock lock(mutex_);
    if (detached_ || channel_ == nullptr || connection != connection_) {
        return false;
    }
    session_.sendFrame(type, body);
    std::move(descriptors.begin(), descriptors.end(), std::back_inserter(outDescriptors_));
    flush();
    return true;
}

// Reactor thread. Who says close reason may have come again by now: that session stays.
void Link::onBye(uint64_t connection, const Status& why) {
    {
        const MutexLock lock(mutex_);
        if (connection != connection_ || detached_) {
            return;  // detached: the engine may be gone
        }
    }
    lost(why);
}

void Link::pollReady() {
    {
        if (!mutex_.tryLock()) {
            return;
        }
        if (channel_ == nullptr || detached_) {
            mutex_.unlock();
            return;
        }
        // A lost connection is the reactor's business.
        const Status status = readControl();
        flush();
        if (!status.ok()) {
            updateWatch(true, writeWatched_);
        }
        mutex_.unlock();
    }
    dispatch();
}

void Link::pauseReads() {
    {
        const MutexLock lock(mutex_);
        if (!readWatched_ || pollId_ == 0) {
            return;
        }
        updateWatch(false, writeWatched_);
    }
    engine_.pollSet.guard();
}

void Link::resumeReads() {
    const MutexLock lock(mutex_);
    updateWatch(true, writeWatched_);
}

void Link::onControl() {
    const auto keep = shared_from_this();
    Status status;
    {
        const MutexLock lock(mutex_);
        status = readControl();
        flush();
    }
    dispatch();
    if (!status.ok()) {
        controlLost(status);
    } else if (engine_.pollSet.polled()) {
        pauseReads();
    }
}

void Link::dropControl() {
    ready_.store(false, std::memory_order_release);
    if (watch_ != 0) {
        engine_.reactor.unwatch(std::exchange(watch_, 0));
    }
    if (channel_ != nullptr) {
        engine_.pollSet.remove(std::exchange(pollId_, 0), channel_->fd());
    }
    channel_.reset();
    readWatched_ = false;
    writeWatched_ = false;
    out_.clear();
    outSent_ = 0;
    outDescriptors_.clear();
}

bool Link::wanted() {
    if (!waiting_.empty() || session_.waiting() > 0) {
        return true;
    }
    return pool_->waiting();
}

// The connection broke; the session may go on over another.
void Link::controlLost(const Status& why) {
    bool dial_now = false;
    bool violation = false;
    {
        const MutexLock lock(mutex_);
        if (channel_ == nullptr) {
            return;
        }
        violation = why.code() == ErrorCode::INVALID_PARAM;
        dropControl();
        session_.detach();
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

void Link::armTick(Time when) {
    if (tickTimer_ != 0) {
        engine_.reactor.stopTimer(tickTimer_);
    }
    tickTimer_ = engine_.reactor.startTimer(when, [weak = weak_from_this()] {
        if (const auto link = weak.lock()) {
            link->tickTimer_ = 0;
            link->onTick();
        }
    });
}

void Link::onTick() {
    Status status;
    Time next;
    {
        const MutexLock lock(mutex_);
        if (channel_ == nullptr) {
            return;
        }
        status = session_.tick(Reactor::Clock::now(), next);
        flush();
    }
    dispatch();
    if (!status.ok()) {
        return lost(status);
    }
    pool_->expire(Reactor::Clock::now(), engine_.config.peerTimeout);
    armTick(next);
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
    for (uint64_t* timer : {&retryTimer_, &tickTimer_, &graceTimer_}) {
        if (*timer != 0) {
            engine_.reactor.stopTimer(std::exchange(*timer, 0));
        }
    }
    wantedSince_.reset();
    backoff_ = {};
    std::vector<Done> waiting;
    bool tell = false;
    {
        const MutexLock lock(mutex_);
        // Who detaches a link takes the peer from the backends himself, and may have added it anew.
        tell = session_.resume().epoch != 0 && !detached_;
        dropControl();
        session_.fail(why);
        waiting.swap(waiting_);
        key_ = {};
    }
    auto unmapped = attachment_->sessionLost();
    std::move(unmapped.begin(), unmapped.end(), std::back_inserter(waiting));
    pool_->fail(why);
    dispatch();
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
            base::ByteWriter body;
            Reject{RejectCode::CLOSING, close_reason}.encode(body);
            self->session_.sendFrame(FrameType::BYE, body.bytes());
            self->flush();
        }
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
