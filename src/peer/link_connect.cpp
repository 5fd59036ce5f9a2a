// See link.h: opening sessions and attaching to the peer's process. Reactor thread, save want().
#include <algorithm>
#include <utility>

#include <sys/epoll.h>

#include "base/log.h"
#include "peer/engine_impl.h"
#include "peer/link.h"

namespace nixl::peer {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kFirstRetry{20};
constexpr milliseconds kLastRetry{500};

}  // namespace

// Somebody waits for a session.
void Link::want() {
    engine_.reactor.run([self = shared_from_this()] {
        if (!self->wantedSince_) {
            self->wantedSince_ = Reactor::Clock::now();
            self->backoff_ = {};
        }
        if (self->dialer_ == nullptr && self->retryTimer_ == 0) {
            self->dial();
        }
    });
}

void Link::dial() {
    std::vector<base::Target> targets;
    std::optional<Earlier> kept;
    Grant grant;
    {
        const MutexLock lock(mutex_);
        if (detached_ || channel_ != nullptr || !gone_.ok()) {
            wantedSince_.reset();
            return;
        }
        if (!endpoints_ || grants_ == nullptr) {
            return;  // only the peer can come back
        }
        targets = targetsOf(*endpoints_, engine_.bootId);
        grant = grants_->forSession();
        if (session_.resume().epoch != 0) {
            kept = Earlier{session_.resume(), key_};
        }
    }
    dialer_ =
        std::make_shared<Dialer>(engine_.reactor, std::move(targets),
                                 Connector(engine_.handshakeSelf(), peer_, ConnectionKind::CONTROL,
                                           base::asView(grant.key), grant.id, kept),
                                 engine_.config.peerTimeout);
    const auto weak = weak_from_this();
    const auto dialler = dialer_;  // start() may end it
    dialler->start(
        [weak](ConnectResult opened) {
            if (const auto link = weak.lock()) {
                link->dialer_.reset();
                link->adopt(std::move(opened));
            }
        },
        // NOLINTNEXTLINE(performance-unnecessary-value-param)
        [weak](ConnectFailure why) {
            if (const auto link = weak.lock()) {
                link->dialer_.reset();
                link->dialFailed(why);
            }
        });
}

void Link::dialFailed(const ConnectFailure& why) {
    if (up()) {
        return;
    }
    const Time now = Reactor::Clock::now();
    const bool in_time = wantedSince_ && now < *wantedSince_ + engine_.config.peerTimeout;
    const bool may_change =
        why.code ? *why.code == RejectCode::DUPLICATE || *why.code == RejectCode::LIMIT
                 : !why.refused;
    if (!in_time || !may_change) {
        Status status = why.status;
        if (!why.code) {
            status = Status(ErrorCode::REMOTE_DISCONNECT,
                            "agent \"" + peer_.name + "\": " + why.status.message(),
                            why.status.systemErrno());
        }
        return lost(status);
    }
    backoff_ = backoff_ == milliseconds(0) ? kFirstRetry : std::min(backoff_ * 2, kLastRetry);
    retryTimer_ = engine_.reactor.startTimer(now + backoff_, [weak = weak_from_this()] {
        if (const auto link = weak.lock()) {
            link->retryTimer_ = 0;
            link->dial();
        }
    });
}

void Link::adopt(ConnectResult opened) {
    const auto keep = shared_from_this();
    if (dialer_ != nullptr) {  // the peer's own connection came first
        std::exchange(dialer_, nullptr)->cancel();
    }
    for (uint64_t* timer : {&retryTimer_, &graceTimer_}) {
        if (*timer != 0) {
            engine_.reactor.stopTimer(std::exchange(*timer, 0));
        }
    }
    wantedSince_.reset();
    Status status;
    {
        const MutexLock lock(mutex_);
        if (detached_) {
            return;
        }
        dropControl();
        channel_ = std::move(opened.channel);
        auto watch =
            engine_.reactor.watch(channel_->fd(), EPOLLIN, [weak = weak_from_this()](uint32_t) {
                if (const auto link = weak.lock()) {
                    link->onControl();
                }
            });
        status = watch.status();
        watch_ = watch.ok() ? watch.value() : 0;
        readWatched_ = watch_ != 0;
        pollId_ = readWatched_ ? engine_.pollSet.add(channel_->fd(), weak_from_this()) : 0;
        session_.attach(Reactor::Clock::now(), opened.result.peerResume, opened.result.resumed);
        key_ = opened.result.key;
        handshake_ = opened.result;
        process_ = opened.process;
        processFd_ = process_.local ? base::socketPidfd(channel_->fd(), process_.pid) : base::Fd();
        channel_->allowDescriptors(process_.local ? base::kEarlyDescriptors + kMaxMapFiles : 0);
        ++connection_;
        if (opened.target.length != 0) {
            target_ = opened.target;
        }
        if (!opened.result.resumed) {
            host_.reset();
            hostDecided_ = false;
            maps_.sessionLost();
            given_.clear();
        } else if (host_ != nullptr) {
            maps_.dropRevoked(*host_);  // its notices may have been lost with the connection
        }
    }
    if (!status.ok()) {
        return lost(status);
    }
    engine_.sessions.fetch_add(1, std::memory_order_relaxed);
    offerHost(opened.process);
    {
        const MutexLock lock(mutex_);
        if (!opened.early.empty()) {
            status = session_.receive(opened.early, Reactor::Clock::now());
            collect();
        }
        flush();
    }
    dispatch();
    if (!status.ok()) {
        return controlLost(status);
    }
    onTick();
}

void Link::offerHost(const base::SocketPeer& process) {
    if (!process.local) {
        const auto there = endpoints();
        const bool same = there && there->bootId == engine_.bootId && there->bootId != Key{};
        return decideHost(nullptr, same ? "the peer is on this host, but only TCP reaches it "
                                          "(another network namespace? a shared socket_dir helps)"
                                        : "the peer is on another host (TCP session)");
    }
    base::Fd pidfd;
    {
        const MutexLock lock(mutex_);
        pidfd = duplicateFd(processFd_);
    }
    watchProcess(duplicateFd(pidfd));
    HostOffer offer;
    if (marks_ == nullptr) {
        auto marks = engine_.hostTarget.open(peer_.name, std::move(pidfd));
        if (marks.ok()) {
            marks_ = std::move(marks).value();
        } else {
            base::log(LogLevel::INFO,
                      "host lane to agent \"" + peer_.name + "\": " + marks.status().message());
        }
    }
    std::vector<base::Fd> pages;
    if (marks_ != nullptr) {
        offer = engine_.hostTarget.offer(*marks_);
        pages = engine_.hostTarget.pages(*marks_);
    }
    const MutexLock lock(mutex_);
    session_.sendFrame(FrameType::HOST_OFFER, offer.encode());
    outDescriptors_ = std::move(pages);
}

void Link::onHostOffer(std::string_view body, const std::vector<base::Fd>& descriptors) {
    auto offer = HostOffer::decode(body);
    HostProcess process;
    {
        const MutexLock lock(mutex_);
        process.pid = process_.pid;
        process.pidfd = duplicateFd(processFd_);
        process.cookieAt = handshake_.cookieAt;
        process.cookie = handshake_.cookie;
        if (host_ != nullptr && !host_->dead()) {
            offer = Status::notSupported("attached already");
        }
    }
    if (!offer.ok()) {
        return decideHost(nullptr, offer.status().message());
    }
    if (offer.value().generationsFd == 0) {
        return decideHost(nullptr, "the peer cannot share pages");
    }
    auto host = HostPeer::create(std::move(process), offer.value(), descriptors);
    if (!host.ok()) {
        return decideHost(nullptr, host.status().message());
    }
    std::string reason = host.value()->attached()
                             ? "attached to process " + std::to_string(host.value()->pid())
                             : host.value()->attachError();
    decideHost(std::move(host).value(), std::move(reason));
}

void Link::decideHost(std::shared_ptr<HostPeer> host, std::string reason) {
    std::vector<Done> waiting;
    {
        const MutexLock lock(mutex_);
        if (channel_ == nullptr) {
            return;
        }
        if (host_ == nullptr || host != nullptr) {
            host_ = std::move(host);
            hostReason_ = std::move(reason);
        }
        hostDecided_ = true;
        waiting.swap(waiting_);
        ready_.store(true, std::memory_order_release);
        askMaps();
    }
    for (const Done& done : waiting) {
        done({});
    }
}

std::shared_ptr<HostPeer> Link::host() {
    const MutexLock lock(mutex_);
    return host_;
}

std::string Link::hostReason() {
    const MutexLock lock(mutex_);
    return hostReason_;
}

Link::HostChoice Link::hostChoice() {
    const MutexLock lock(mutex_);
    HostChoice choice{host_, hostReason_, gone_};
    if (gone_.ok() && !hostDecided_) {
        choice.session = Status::disconnected("agent \"" + peer_.name +
                                              "\": the session was lost as the transfer began");
    }
    return choice;
}

void Link::watchProcess(base::Fd pidfd) {
    if (pidWatch_ != 0 || !pidfd) {
        return;  // without one the end of the connection must do
    }
    pidfd_ = std::move(pidfd);
    auto watch = engine_.reactor.watch(pidfd_.get(), EPOLLIN, [weak = weak_from_this()](uint32_t) {
        if (const auto link = weak.lock()) {
            link->processEndedNow();
        }
    });
    pidWatch_ = watch.ok() ? watch.value() : 0;
}

// A child of it may keep its listening socket open, which then never answers: nobody dials it.
void Link::processEndedNow() {
    const Status why =
        Status::disconnected("the process of agent \"" + peer_.name + "\" has ended");
    {
        const MutexLock lock(mutex_);
        gone_ = why;
    }
    lost(why);
}

void Link::forgetProcess() {
    if (pidWatch_ != 0) {
        engine_.reactor.unwatch(std::exchange(pidWatch_, 0));
    }
    pidfd_.reset();
    if (marks_ != nullptr) {
        engine_.hostTarget.close(std::exchange(marks_, nullptr));
    }
}

}  // namespace nixl::peer
