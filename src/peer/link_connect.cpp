// See link.h: opening sessions and attaching to the peer's process. Reactor thread, save want().
#include <algorithm>
#include <utility>

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
        if (detached_ || !gone_.ok() || control_->up()) {
            wantedSince_.reset();
            return;
        }
        if (!endpoints_ || grants_ == nullptr) {
            return;  // only the peer can come back
        }
        targets = targetsOf(*endpoints_, engine_.bootId);
        grant = grants_->forSession();
        kept = control_->earlier();
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
    const base::SocketPeer process = opened.process;
    uint64_t number = 0;
    {
        const MutexLock lock(mutex_);
        if (detached_) {
            return;
        }
        ready_.store(false, std::memory_order_release);
        number = control_->replace();
        if (opened.target.length != 0) {
            target_ = opened.target;
        }
    }
    const int fd = opened.channel->fd();
    attachment_->connecting({number, opened.result.resumed, opened.result.key, process,
                             process.local ? base::socketPidfd(fd, process.pid) : base::Fd(),
                             opened.result.cookieAt, opened.result.cookie});
    Status status = control_->adopt(opened);
    if (!status.ok()) {
        return lost(status);
    }
    engine_.sessions.fetch_add(1, std::memory_order_relaxed);
    attachment_->offer(elsewhere(process));
    status = control_->begin(opened.early);
    if (!status.ok()) {
        return controlLost(status);
    }
    control_->tick();
}

std::string Link::elsewhere(const base::SocketPeer& process) {
    if (process.local) {
        return {};
    }
    const auto there = endpoints();
    const bool same = there && there->bootId == engine_.bootId && there->bootId != Key{};
    return same ? "the peer is on this host, but only TCP reaches it "
                  "(another network namespace? a shared socket_dir helps)"
                : "the peer is on another host (TCP session)";
}

void Link::hostDecided(uint64_t connection) {
    std::vector<Done> waiting;
    {
        const MutexLock lock(mutex_);
        if (!control_->inUse(connection)) {
            return;
        }
        waiting.swap(waiting_);
        ready_.store(true, std::memory_order_release);
    }
    for (const Done& done : waiting) {
        done({});
    }
}

void Link::violated(const Status& why) {
    engine_.reactor.run([self = shared_from_this(), why] { self->controlLost(why); });
}

Link::HostChoice Link::hostChoice() {
    HostAttachment::Choice chosen = attachment_->choice();
    const MutexLock lock(mutex_);
    HostChoice choice{std::move(chosen.peer), std::move(chosen.reason), gone_};
    if (gone_.ok() && !chosen.decided) {
        choice.session = Status::disconnected("agent \"" + peer_.name +
                                              "\": the session was lost as the transfer began");
    }
    return choice;
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

}  // namespace nixl::peer
