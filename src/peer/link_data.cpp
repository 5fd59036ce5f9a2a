// See link.h: data connections and the transfers that wait for them.
#include <algorithm>
#include <utility>

#include <sys/epoll.h>

#include "base/log.h"
#include "peer/engine_impl.h"
#include "peer/link.h"

namespace nixl::peer {

namespace {

// Another connection pays when each has at least this much to do.
constexpr uint64_t kBytesPerConnection = 8 << 20;
constexpr unsigned kDefaultConnections = 2;

}  // namespace

std::vector<std::shared_ptr<ClientConnection>> Link::clients() {
    const MutexLock lock(dataMutex_);
    return clients_;
}

// Gives a connection the next parts, one transfer after the other, as long as it is one of those in
// use: who cancels a transfer asks these and those that leave. Inside the connection's lock.
void Link::feed(StreamClient& client) {
    while (client.hasRoom()) {
        std::shared_ptr<StreamJob> job;
        {
            const MutexLock lock(dataMutex_);
            if (std::none_of(clients_.begin(), clients_.end(),
                             [&](const auto& one) { return one->has(client); })) {
                return;
            }
            job = jobs_.next();
        }
        if (job == nullptr) {
            return;
        }
        if (std::optional<StreamPart> part = job->nextPart()) {
            client.submit(std::move(*part));
        }
    }
}

void Link::startJob(const std::shared_ptr<StreamJob>& job, uint64_t inline_bytes) {
    std::shared_ptr<ClientConnection> client;
    size_t connections = 0;
    bool wanted = false;
    {
        const MutexLock lock(dataMutex_);
        jobs_.push(job);
        connections = clients_.size();
        wanted = moreConnectionsPay();
        if (connections > 0) {
            client = clients_[nextClient_++ % connections];
        }
    }
    if (wanted) {
        wantData();
    }
    if (client != nullptr) {
        client->wake(inline_bytes);
        if (connections > 1 && job->hasMore()) {
            for (const auto& other : clients()) {
                if (other != client) {
                    other->wake(0);
                }
            }
        }
    }
}

bool Link::moreConnectionsPay() const {
    const unsigned limit = engine_.config.streamConnections != 0 ? engine_.config.streamConnections
                                                                 : kDefaultConnections;
    return clients_.empty() ||
           (clients_.size() < limit && jobs_.moreThan(kBytesPerConnection * clients_.size()));
}

void Link::cancelJob(const std::shared_ptr<StreamJob>& job, const Status& why) {
    // No part leaves it any more; then the connections let go of those they have.
    job->stop(why);
    std::vector<std::shared_ptr<ClientConnection>> clients;
    {
        const MutexLock lock(dataMutex_);
        jobs_.erase(job);
        clients = clients_;
        clients.insert(clients.end(), leaving_.begin(), leaving_.end());
    }
    for (const auto& client : clients) {
        client->cancel(job.get());
    }
}

void Link::wantData() {
    Status ended;
    {
        const MutexLock lock(mutex_);
        ended = gone_;
    }
    if (!ended.ok()) {
        return failJobs(ended);
    }
    engine_.reactor.run([self = shared_from_this()] {
        if (self->dataDialer_ == nullptr) {
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
        no_session = detached_ || channel_ == nullptr;
        comes_back = no_session && !detached_ && endpoints_ && session_.resume().epoch != 0;
        if (no_session) {
            // Nothing to dial; a detached link's engine may be gone.
        } else if (target_) {
            targets.push_back(*target_);
        } else if (endpoints_) {
            targets = targetsOf(*endpoints_, engine_.bootId);
        }
        key = key_;
    }
    if (comes_back) {
        return whenReady([weak = weak_from_this()](const Status& status) {
            if (const auto link = weak.lock()) {
                status.ok() ? link->wantData() : link->failJobs(status);
            }
        });
    }
    if (no_session) {
        // A transfer that was posted while the session went: its loss has ended all before.
        return failJobs(Status::disconnected("agent \"" + peer_.name + "\" has no session"));
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
                if (link->clients().empty()) {
                    link->failJobs(
                        Status::disconnected("agent \"" + link->peer_.name +
                                             "\": no data connection: " + why.status.message()));
                }
            }
        });
}

void Link::dataConnected(ConnectResult opened) {
    const auto weak = weak_from_this();
    opened.channel->allowDescriptors(0);
    base::chooseCongestion(opened.channel->fd(), engine_.config.tcpCongestion);
    auto client =
        std::make_shared<ClientConnection>(std::move(opened.channel), peer_.name, opened.result.key,
                                           engine_.dataLoop, [weak](StreamClient& one) {
                                               if (const auto link = weak.lock()) {
                                                   link->feed(one);
                                               }
                                           });
    client->onGone([weak, raw = client.get()](const Status& why) {
        if (const auto link = weak.lock()) {
            link->dataGone(raw, why);
        }
    });
    if (Status status = engine_.dataLoop.add(client, EPOLLIN); !status.ok()) {
        if (clients().empty()) {  // others do without this one
            failJobs(status);
        }
        return;
    }
    bool wanted = false;
    {
        const MutexLock lock(dataMutex_);
        clients_.push_back(client);
        wanted = moreConnectionsPay();
    }
    if (client->ended()) {  // before it was in the list
        return dataGone(client.get(), Status::disconnected("its data connection ended at once"));
    }
    client->wake(0);
    if (wanted) {
        wantData();
    }
}

void Link::dataGone(const ClientConnection* connection, const Status& why) {
    bool last = false;
    bool waiting = false;
    {
        const MutexLock lock(dataMutex_);
        const auto it = [&](const auto& one) { return one.get() == connection; };
        std::erase_if(leaving_, it);
        last = std::erase_if(clients_, it) > 0 && clients_.empty();
        waiting = !jobs_.empty();
    }
    if (last) {
        failJobs(Status::disconnected("agent \"" + peer_.name + "\": " + why.message()));
    } else if (waiting) {
        // Who posted while it was dying may have told this one alone.
        for (const auto& other : clients()) {
            other->wake(0);
        }
    }
}

// Ends the transfers on the stream lane; those with parts under way when these are back.
void Link::failJobs(const Status& why) {
    StreamJobQueue::Jobs jobs;
    std::vector<std::shared_ptr<ClientConnection>> clients;
    std::vector<std::weak_ptr<TargetConnection>> served;
    {
        const MutexLock lock(dataMutex_);
        jobs = jobs_.takeAll();
        clients.swap(clients_);
        leaving_.insert(leaving_.end(), clients.begin(), clients.end());
        served.swap(served_);
    }
    for (const auto& job : jobs) {
        job->stop(why);
    }
    for (const auto& client : clients) {
        client->shutdown();
    }
    for (const auto& one : served) {
        if (const auto connection = one.lock()) {
            connection->shutdown();
        }
    }
}

// A peer that has lost connections, of which nobody told this side, needs room for new ones.
void Link::endIdlestServed() {
    std::shared_ptr<TargetConnection> idlest;
    for (const auto& weak : served_) {
        auto one = weak.lock();
        if (one != nullptr && (idlest == nullptr || one->lastUsed() < idlest->lastUsed())) {
            idlest = std::move(one);
        }
    }
    std::erase_if(served_, [&](const auto& one) { return one.lock() == idlest; });
    if (idlest != nullptr) {
        idlest->shutdown();
    }
}

void Link::serve(ConnectResult opened) {
    const MutexLock lock(dataMutex_);
    std::erase_if(served_, [](const auto& one) { return one.expired(); });
    if (served_.size() >= kMaxServed) {
        endIdlestServed();
    }
    opened.channel->allowDescriptors(0);
    base::chooseCongestion(opened.channel->fd(), engine_.config.tcpCongestion);
    auto connection = std::make_shared<TargetConnection>(std::move(opened.channel), engine_.access,
                                                         opened.result.key, engine_.dataLoop,
                                                         opened.early, [](const Status&) {});
    if (Status status = engine_.dataLoop.add(connection, EPOLLIN); !status.ok()) {
        base::log(LogLevel::WARN, "cannot serve a data connection of agent \"" + peer_.name +
                                      "\": " + status.message());
        return;
    }
    served_.push_back(connection);
}

}  // namespace nixl::peer
