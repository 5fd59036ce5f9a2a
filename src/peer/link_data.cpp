// See link.h: opening data connections for the stream pool.
#include <algorithm>
#include <utility>

#include "peer/engine_impl.h"
#include "peer/link.h"

namespace nixl::peer {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kFirstDataRetry{20};
constexpr milliseconds kLastDataRetry{500};

}  // namespace

void Link::wantData() {
    Status ended;
    {
        const MutexLock lock(mutex_);
        ended = gone_;
    }
    if (!ended.ok()) {
        return pool_->fail(ended);
    }
    engine_.reactor.run([self = shared_from_this()] {
        if (self->dataDialer_ == nullptr && self->dataRetryTimer_ == 0) {
            self->dialData();
        }
    });
}

void Link::dialData() {
    std::vector<base::Target> targets;
    base::Digest key{};
    bool no_session = false;
    bool comes_back = false;
    {
        const MutexLock lock(mutex_);
        const auto current = control_->key();
        no_session = detached_ || !current;
        comes_back = no_session && !detached_ && endpoints_ && control_->earlier();
        if (no_session) {
            // Nothing to dial; a detached link's engine may be gone.
        } else if (target_) {
            targets.push_back(*target_);
        } else if (endpoints_) {
            targets = targetsOf(*endpoints_, engine_.bootId);
        }
        key = current.value_or(base::Digest{});
    }
    if (comes_back) {
        return whenReady([weak = weak_from_this()](const Status& status) {
            if (const auto link = weak.lock()) {
                status.ok() ? link->wantData() : link->pool_->fail(status);
            }
        });
    }
    if (no_session) {
        // A transfer that was posted while the session went: its loss has ended all before.
        return pool_->fail(Status::disconnected("agent \"" + peer_.name + "\" has no session"));
    }
    dataDialer_ = std::make_shared<Dialer>(
        engine_.reactor, std::move(targets),
        Connector(engine_.handshakeSelf(), peer_, ConnectionKind::DATA, base::asView(key), 0, {}),
        engine_.config.peerTimeout);
    const auto weak = weak_from_this();
    const auto dialler = dataDialer_;
    dialler->start(
        [weak](ConnectResult opened) {
            if (const auto link = weak.lock()) {
                link->dataDialer_.reset();
                link->dataConnected(std::move(opened));
            }
        },
        [weak](const ConnectFailure& why) {
            if (const auto link = weak.lock()) {
                link->dataDialer_.reset();
                link->dataDialFailed(why);
            }
        });
}

// What passes is waited for, like the session itself: a lost packet, a peer that has no room, or
// whose control connection is being replaced, so that it has no session, or one of another key.
void Link::dataDialFailed(const ConnectFailure& why) {
    const Time now = Reactor::Clock::now();
    if (!dataWantedSince_) {
        dataWantedSince_ = now;
        dataBackoff_ = {};
    }
    const bool may_change = why.code ? *why.code == RejectCode::UNKNOWN_GRANT ||
                                           *why.code == RejectCode::AUTHENTICATION ||
                                           *why.code == RejectCode::LIMIT
                                     : !why.refused;
    if (!may_change || now >= *dataWantedSince_ + engine_.config.peerTimeout ||
        pool_->connections() > 0 || !pool_->waiting()) {
        dataWantedSince_.reset();
        return pool_->openFailed(Status::disconnected(
            "agent \"" + peer_.name + "\": no data connection: " + why.status.message()));
    }
    dataBackoff_ = dataBackoff_ == milliseconds(0) ? kFirstDataRetry
                                                   : std::min(dataBackoff_ * 2, kLastDataRetry);
    dataRetryTimer_ = engine_.reactor.startTimer(now + dataBackoff_, [weak = weak_from_this()] {
        if (const auto link = weak.lock()) {
            link->dataRetryTimer_ = 0;
            link->dialData();
        }
    });
}

void Link::dataConnected(ConnectResult opened) {
    dataWantedSince_.reset();
    pool_->adopt(std::move(opened.channel), opened.result.key);
}

void Link::serve(ConnectResult opened) {
    pool_->serve(std::move(opened.channel), opened.result.key, opened.early);
}

}  // namespace nixl::peer
