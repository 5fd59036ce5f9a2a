// See pool.h.
#include "lanes/stream/pool.h"

#include <algorithm>
#include <utility>

#include <sys/epoll.h>

#include "base/log.h"
#include "base/socket.h"

namespace nixl::peer {

namespace {

// Another connection pays when each has at least this much to do.
constexpr uint64_t kBytesPerConnection = 8 << 20;
constexpr unsigned kDefaultConnections = 2;

}  // namespace

StreamPool::StreamPool(StreamPoolConfig config,
                       DataLoop& loop,
                       NetworkAccess& access,
                       std::function<void()> open)
    : config_(std::move(config)), loop_(loop), access_(access), open_(std::move(open)) {}

std::vector<StreamPool::Client> StreamPool::clients() {
    const MutexLock lock(mutex_);
    return clients_;
}

bool StreamPool::waiting() {
    const MutexLock lock(mutex_);
    return !jobs_.empty();
}

size_t StreamPool::connections() {
    const MutexLock lock(mutex_);
    return clients_.size();
}

void StreamPool::expire(Reactor::Clock::time_point now, std::chrono::milliseconds patience) {
    for (const Client& client : clients()) {
        client->expire(now, patience);
    }
}

// Gives a connection the next parts, one transfer after the other, as long as it is one of those in
// use: who cancels a transfer asks these and those that leave. Inside the connection's lock.
void StreamPool::feed(StreamClient& client) {
    while (client.hasRoom()) {
        std::shared_ptr<StreamJob> job;
        {
            const MutexLock lock(mutex_);
            if (std::none_of(clients_.begin(), clients_.end(),
                             [&](const Client& one) { return one->has(client); })) {
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

void StreamPool::start(const std::shared_ptr<StreamJob>& job, uint64_t inline_bytes) {
    Client client;
    size_t count = 0;
    bool wanted = false;
    {
        const MutexLock lock(mutex_);
        jobs_.push(job);
        count = clients_.size();
        wanted = morePay();
        if (count > 0) {
            client = clients_[nextClient_++ % count];
        }
    }
    if (wanted) {
        open_();
    }
    if (client != nullptr) {
        client->wake(inline_bytes);
        if (count > 1 && job->hasMore()) {
            for (const Client& other : clients()) {
                if (other != client) {
                    other->wake(0);
                }
            }
        }
    }
}

bool StreamPool::morePay() const {
    const unsigned limit = config_.connections != 0 ? config_.connections : kDefaultConnections;
    return clients_.empty() ||
           (clients_.size() < limit && jobs_.moreThan(kBytesPerConnection * clients_.size()));
}

void StreamPool::cancel(const std::shared_ptr<StreamJob>& job, const Status& why) {
    // No part leaves it any more; then the connections let go of those they have.
    job->stop(why);
    std::vector<Client> clients;
    {
        const MutexLock lock(mutex_);
        jobs_.erase(job);
        clients = clients_;
        clients.insert(clients.end(), leaving_.begin(), leaving_.end());
    }
    for (const Client& client : clients) {
        client->cancel(job.get());
    }
}

void StreamPool::adopt(std::unique_ptr<base::Channel> channel, const base::Digest& key) {
    channel->allowDescriptors(0);
    const auto weak = weak_from_this();
    auto client = std::make_shared<ClientConnection>(std::move(channel), config_.peer, key, loop_,
                                                     [weak](StreamClient& one) {
                                                         if (const auto pool = weak.lock()) {
                                                             pool->feed(one);
                                                         }
                                                     });
    client->chooseCongestion(config_.congestion);
    client->onGone([weak, raw = client.get()](const Status& why) {
        if (const auto pool = weak.lock()) {
            pool->gone(raw, why);
        }
    });
    if (Status status = loop_.add(client, EPOLLIN); !status.ok()) {
        return openFailed(status);
    }
    bool wanted = false;
    {
        const MutexLock lock(mutex_);
        clients_.push_back(client);
        wanted = morePay();
    }
    if (client->ended()) {  // before it was in the list
        return gone(client.get(), Status::disconnected("its data connection ended at once"));
    }
    client->wake(0);
    if (wanted) {
        open_();
    }
}

void StreamPool::openFailed(const Status& why) {
    if (connections() == 0) {
        fail(why);
    }
}

void StreamPool::gone(const ClientConnection* connection, const Status& why) {
    bool last = false;
    bool waiting = false;
    {
        const MutexLock lock(mutex_);
        const auto it = [&](const Client& one) { return one.get() == connection; };
        std::erase_if(leaving_, it);
        last = std::erase_if(clients_, it) > 0 && clients_.empty();
        waiting = !jobs_.empty();
    }
    if (last) {
        fail(Status::disconnected("agent \"" + config_.peer + "\": " + why.message()));
    } else if (waiting) {
        // Who posted while it was dying may have told this one alone.
        for (const Client& other : clients()) {
            other->wake(0);
        }
    }
}

void StreamPool::fail(const Status& why) {
    StreamJobQueue::Jobs jobs;
    std::vector<Client> clients;
    std::vector<std::weak_ptr<TargetConnection>> served;
    {
        const MutexLock lock(mutex_);
        jobs = jobs_.takeAll();
        clients.swap(clients_);
        leaving_.insert(leaving_.end(), clients.begin(), clients.end());
        served.swap(served_);
    }
    for (const auto& job : jobs) {
        job->stop(why);
    }
    for (const Client& client : clients) {
        client->shutdown();
    }
    for (const auto& one : served) {
        if (const auto connection = one.lock()) {
            connection->shutdown();
        }
    }
}

// A peer that has lost connections, of which nobody told this side, needs room for new ones.
void StreamPool::endIdlestServed() {
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

void StreamPool::serve(std::unique_ptr<base::Channel> channel,
                       const base::Digest& key,
                       std::string_view early) {
    const MutexLock lock(mutex_);
    std::erase_if(served_, [](const auto& one) { return one.expired(); });
    if (served_.size() >= kMaxServed) {
        endIdlestServed();
    }
    channel->allowDescriptors(0);
    auto connection = std::make_shared<TargetConnection>(std::move(channel), access_, key, loop_,
                                                         early, [](const Status&) {});
    connection->chooseCongestion(config_.congestion);
    if (Status status = loop_.add(connection, EPOLLIN); !status.ok()) {
        base::log(LogLevel::WARN, "cannot serve a data connection of agent \"" + config_.peer +
                                      "\": " + status.message());
        return;
    }
    served_.push_back(connection);
}

}  // namespace nixl::peer
