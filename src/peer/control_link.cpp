// See control_link.h.
#include "peer/control_link.h"

#include <iterator>
#include <utility>

#include <sys/epoll.h>

#include "lanes/host/map_wire.h"

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

ControlLink::ControlLink(Context context, std::weak_ptr<Owner> owner)
    : context_(std::move(context)),
      owner_(std::move(owner)),
      session_(context_.peer, context_.limits) {}

ControlLink::~ControlLink() = default;

Status ControlLink::send(std::string message, Done done, std::atomic<uint64_t>* its_token) {
    const MutexLock lock(mutex_);
    const uint64_t token = nextToken_++;
    NIXL_RETURN_IF_ERROR(session_.send(std::move(message), token));
    tokens_.emplace(token, std::move(done));
    if (its_token != nullptr) {
        its_token->store(token);
    }
    flush();
    return {};
}

bool ControlLink::withdraw(uint64_t token) {
    const MutexLock lock(mutex_);
    return session_.withdraw(token) && tokens_.erase(token) > 0;
}

bool ControlLink::sendFrame(uint64_t connection,
                            FrameType type,
                            std::string_view body,
                            std::vector<base::Fd> descriptors) {
    const MutexLock lock(mutex_);
    if (channel_ == nullptr || connection != connection_) {
        return false;
    }
    session_.sendFrame(type, body);
    std::move(descriptors.begin(), descriptors.end(), std::back_inserter(outDescriptors_));
    flush();
    return true;
}

bool ControlLink::up() {
    const MutexLock lock(mutex_);
    return channel_ != nullptr;
}

bool ControlLink::inUse(uint64_t connection) {
    const MutexLock lock(mutex_);
    return channel_ != nullptr && connection == connection_;
}

bool ControlLink::isLatest(uint64_t connection) {
    const MutexLock lock(mutex_);
    return connection == connection_;
}

uint64_t ControlLink::waiting() {
    const MutexLock lock(mutex_);
    return session_.waiting();
}

std::optional<Earlier> ControlLink::earlier() {
    const MutexLock lock(mutex_);
    if (session_.resume().epoch == 0) {
        return std::nullopt;
    }
    return Earlier{session_.resume(), key_};
}

std::optional<base::Digest> ControlLink::key() {
    const MutexLock lock(mutex_);
    return channel_ != nullptr ? std::optional(key_) : std::nullopt;
}

uint64_t ControlLink::replace() {
    const MutexLock lock(mutex_);
    close();
    return ++connection_;
}

Status ControlLink::adopt(ConnectResult& opened) {
    const MutexLock lock(mutex_);
    channel_ = std::move(opened.channel);
    const int fd = channel_->fd();
    auto watch = context_.reactor.watch(fd, EPOLLIN, [weak = weak_from_this()](uint32_t) {
        if (const auto link = weak.lock()) {
            link->onReady();
        }
    });
    watch_ = watch.ok() ? watch.value() : 0;
    readWatched_ = watch_ != 0;
    pollId_ = readWatched_ ? context_.pollSet.add(fd, weak_from_this()) : 0;
    session_.attach(Reactor::Clock::now(), opened.result.peerResume, opened.result.resumed);
    key_ = opened.result.key;
    channel_->allowDescriptors(opened.process.local ? base::kEarlyDescriptors + kMaxMapFiles : 0);
    return watch.status();
}

Status ControlLink::begin(std::string_view early) {
    Status status;
    {
        const MutexLock lock(mutex_);
        if (!early.empty()) {
            status = session_.receive(early, Reactor::Clock::now());
            collect();
        }
        flush();
    }
    dispatch();
    return status;
}

bool ControlLink::drop() {
    const MutexLock lock(mutex_);
    if (channel_ == nullptr) {
        return false;
    }
    close();
    session_.detach();
    return true;
}

bool ControlLink::fail(const Status& why) {
    stopTicking();
    const MutexLock lock(mutex_);
    const bool was = session_.resume().epoch != 0;
    close();
    session_.fail(why);
    key_ = {};
    return was;
}

void ControlLink::bye(std::string_view body) {
    const MutexLock lock(mutex_);
    session_.sendFrame(FrameType::BYE, body);
    flush();
}

// Reads the control connection until it is empty.
Status ControlLink::read() {
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

void ControlLink::flush() {
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

void ControlLink::updateWatch(bool reading, bool writing) {
    if (watch_ != 0 && (reading != readWatched_ || writing != writeWatched_)) {
        readWatched_ = reading;
        writeWatched_ = writing;
        const uint32_t events = (reading ? EPOLLIN : 0U) | (writing ? EPOLLOUT : 0U);
        static_cast<void>(context_.reactor.modify(watch_, events).ok());
    }
}

void ControlLink::collect() {
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
void ControlLink::dispatch() {
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

void ControlLink::deliver(Session::Event& event, uint64_t epoch) {
    const uint64_t cost = event.token;
    std::shared_ptr<void> credit(static_cast<void*>(this),
                                 [weak = weak_from_this(), epoch, cost](void*) {
                                     if (const auto link = weak.lock()) {
                                         link->giveCredit(epoch, cost);
                                     }
                                 });
    if (const auto owner = owner_.lock()) {
        owner->notified(std::move(event.text), std::move(credit));
    }
    const MutexLock lock(mutex_);
    session_.delivered(epoch, event.sequence);  // dispatch() sends the acknowledgement
}

void ControlLink::giveCredit(uint64_t epoch, uint64_t cost) {
    const MutexLock lock(mutex_);
    session_.consumed(epoch, cost);
    creditOwed_ += cost;
    // Small amounts ride along with the next acknowledgement or heartbeat.
    if (creditOwed_ >= kCreditStep) {
        creditOwed_ = 0;
        flush();
    }
}

void ControlLink::handle(Incoming& incoming) {
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
        case Session::Event::Kind::FRAME: {
            const auto owner = owner_.lock();
            // Else it is of a connection that has been replaced.
            if (owner != nullptr && isLatest(incoming.connection)) {
                owner->onFrame(incoming.connection, event.type, event.text, incoming.descriptors);
            }
            break;
        }
        case Session::Event::Kind::BYE:
            // Who says so closes the connection, and may have come again by then: that session
            // stays.
            context_.reactor.run(
                [self = shared_from_this(), connection = incoming.connection, why = event.status] {
                    const auto owner = self->owner_.lock();
                    if (owner != nullptr && self->isLatest(connection)) {
                        owner->sessionEnded(why);
                    }
                });
            break;
        case Session::Event::Kind::DELIVER:
            break;
    }
}

void ControlLink::pollReady() {
    {
        if (!mutex_.tryLock()) {
            return;
        }
        if (channel_ == nullptr) {
            mutex_.unlock();
            return;
        }
        // A lost connection is the reactor's business.
        const Status status = read();
        flush();
        if (!status.ok()) {
            updateWatch(true, writeWatched_);
        }
        mutex_.unlock();
    }
    dispatch();
}

void ControlLink::pauseReads() {
    {
        const MutexLock lock(mutex_);
        if (!readWatched_ || pollId_ == 0) {
            return;
        }
        updateWatch(false, writeWatched_);
    }
    context_.pollSet.guard();
}

void ControlLink::resumeReads() {
    const MutexLock lock(mutex_);
    updateWatch(true, writeWatched_);
}

void ControlLink::onReady() {
    const auto keep = shared_from_this();
    Status status;
    {
        const MutexLock lock(mutex_);
        status = read();
        flush();
    }
    dispatch();
    const auto owner = owner_.lock();
    if (!status.ok() && owner != nullptr) {
        owner->controlLost(status);
    } else if (context_.pollSet.polled()) {
        pauseReads();
    }
}

void ControlLink::close() {
    if (watch_ != 0) {
        context_.reactor.unwatch(std::exchange(watch_, 0));
    }
    if (channel_ != nullptr) {
        context_.pollSet.remove(std::exchange(pollId_, 0), channel_->fd());
    }
    channel_.reset();
    readWatched_ = false;
    writeWatched_ = false;
    out_.clear();
    outSent_ = 0;
    outDescriptors_.clear();
}

void ControlLink::stopTicking() {
    if (tickTimer_ != 0) {
        context_.reactor.stopTimer(std::exchange(tickTimer_, 0));
    }
}

void ControlLink::tick() {
    const auto keep = shared_from_this();
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
    if (const auto owner = owner_.lock()) {
        status.ok() ? owner->ticked() : owner->sessionEnded(status);
    }
    if (!status.ok()) {
        return;
    }
    stopTicking();
    tickTimer_ = context_.reactor.startTimer(next, [weak = weak_from_this()] {
        if (const auto link = weak.lock()) {
            link->tickTimer_ = 0;
            link->tick();
        }
    });
}

}  // namespace nixl::peer
