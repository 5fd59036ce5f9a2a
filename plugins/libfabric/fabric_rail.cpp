// See fabric_rail.h.
#include "fabric_rail.h"

#include <algorithm>
#include <cerrno>
#include <thread>

#include <poll.h>
#include <rdma/fi_errno.h>
#include <sys/epoll.h>

#include "fabric_sockets.h"

namespace nixl::fabric {

Result<std::shared_ptr<FabricRail>> FabricRail::create(std::shared_ptr<const FabricLibrary> library,
                                                       const InfoPtr& info,
                                                       const std::string& agent,
                                                       PluginServices& services) {
    Result<std::unique_ptr<Domain>> domain = Domain::open(std::move(library), info);
    if (!domain.ok()) {
        return domain.status();
    }
    std::shared_ptr<FabricRail> made(new FabricRail(std::move(domain).value(), agent, services));
    NIXL_RETURN_IF_ERROR(made->start());
    return made;
}

Status FabricRail::start() {
    const std::lock_guard lock(mutex_);
    address_.instance = randomId();
    const char* const network = domain_->info().fabric_attr->name;
    address_.network = network == nullptr ? "" : network;
    inbound_ = std::make_unique<Inbound>(*domain_, address_.instance);
    NIXL_RETURN_IF_ERROR(inbound_->open());
    address_.endpoint = inbound_->endpoint().name();
    watch_.fd = inbound_->endpoint().fd();
    if (watch_.fd < 0) {
        plan();
        return {};
    }
    watch_.id = watchFd(watch_.fd, {});
    if (watch_.id == 0) {
        return Status::backend(domain_->text("watching its descriptor", -errno));
    }
    pollers_ = services_.pollers();
    pollId_ = pollers_ == nullptr ? 0 : pollers_->add(watch_.fd, weak_from_this());
    return {};
}

uint64_t FabricRail::watchFd(int fd, const std::string& peer) {
    const auto watch = services_.reactor().watch(
        fd, EPOLLIN, [weak = weak_from_this(), peer](uint32_t /*events*/) {
            if (const auto self = weak.lock()) {
                self->onReactor(peer);
            }
        });
    return watch.ok() ? watch.value() : 0;
}

// NOLINTNEXTLINE(bugprone-exception-escape): without memory for a list the process ends
FabricRail::~FabricRail() {
    close();
}

void FabricRail::close() {
    Calls calls;
    std::unique_lock lock(mutex_);
    if (closed_) {
        return;
    }
    closed_ = true;
    const auto limit = Clock::now() + kEndLimit;
    bool ended = false;
    while (!ended) {
        ended = true;
        for (auto& [key, peer] : peers_) {
            ended = peer->link->close(calls) && ended;
        }
        if (ended || Clock::now() >= limit) {
            break;
        }
        pass(calls);
        unlock(lock, calls);
        std::this_thread::sleep_for(kPollPeriod);
        lock.lock();
    }
    for (auto& [key, peer] : peers_) {
        stopWatching(peer->watch);
    }
    if (timer_ != 0) {
        services_.reactor().stopTimer(std::exchange(timer_, 0));
    }
    if (pollId_ != 0) {
        pollers_->remove(std::exchange(pollId_, 0), watch_.fd);
    }
    stopWatching(watch_);
    if (ended) {
        inbound_.reset();
        stepped_.clear();
        peers_.clear();
    } else {
        // What libfabric has not given back stays until the process ends.
        static_cast<void>(new std::shared_ptr<FabricRail>(shared_from_this()));
    }
    busy_.clear();
    unlock(lock, calls);
}

// --- memory

Result<Domain::Mapped> FabricRail::map(const MemoryRegion& region) {
    const std::lock_guard lock(mutex_);
    return domain_->map(region, FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE);
}

void FabricRail::unmap(const Domain::Mapped& mapped) {
    Calls calls;
    std::unique_lock lock(mutex_);
    domain_->revoke(mapped.key.key);
    const uint64_t fence = closed_ || !inbound_->works() ? 0 : inbound_->fence(mapped.key.key);
    const auto limit = Clock::now() + kFenceLimit;
    const auto asked = [&] { return fence != 0 && !closed_ && !inbound_->fenced(fence); };
    while (asked() && Clock::now() < limit) {
        if (!pass(calls)) {
            waitABit(lock, calls);
        }
    }
    if (fence != 0 && !closed_ && !inbound_->endFence(fence) && domain_->overSockets()) {
        // Somebody who does not answer may be in the middle of a write.
        services_.log(LogLevel::INFO, label() +
                                          ": a peer did not let go of deregistered memory; "
                                          "all connections are made anew");
        endInbound(lock, calls);
    }
    domain_->unmap(mapped);
    settle(Who::OTHER);
    unlock(lock, calls);
}

// Ends all connections of peers; when it returns nothing comes by them any more.
void FabricRail::endInbound(std::unique_lock<std::mutex>& lock, Calls& calls) {
    const Connections ended = endConnections(inbound_->endpoint().name(), Side::OWN);
    const auto limit = Clock::now() + kFenceLimit;
    while (!closed_ && anyOpen(ended) && Clock::now() < limit) {
        if (!pass(calls)) {
            waitABit(lock, calls);
        }
    }
    if (!closed_) {
        inbound_->connectionsEnded();
    }
}

void FabricRail::waitABit(std::unique_lock<std::mutex>& lock, Calls& calls) {
    const int fd = inbound_->endpoint().fd();
    unlock(lock, calls);
    pollfd wait{fd, POLLIN, 0};
    fd < 0 ? std::this_thread::sleep_for(kPollPeriod) : void(poll(&wait, 1, 1));
    lock.lock();
}

// Closes the endpoint that peers reach and listens again at the same place.
void FabricRail::reopen() {
    const bool own = watch_.fd >= 0;
    if (own) {
        stopWatching(watch_);
        if (pollId_ != 0) {
            pollers_->remove(std::exchange(pollId_, 0), watch_.fd);
        }
    }
    if (const Status status = inbound_->reopen(); !status.ok()) {
        services_.log(LogLevel::WARN,
                      label() + ": peers cannot reach it any more: " + status.message());
    } else if (own) {
        watch_ = {inbound_->endpoint().fd(), 0, false};
        watch_.id = watchFd(watch_.fd, {});
        pollId_ = pollers_ == nullptr ? 0 : pollers_->add(watch_.fd, weak_from_this());
    }
}

// --- peers and jobs

// By which of its links a peer is reached: for reads (r) and for writes (w).
std::vector<std::string> FabricRail::linksOf(const std::string& key) const {
    return domain_->overSockets() ? std::vector<std::string>{key + "r", key + "w"}
                                  : std::vector<std::string>{key};
}

void FabricRail::addPeer(const std::string& key, const RailAddress& address) {
    Calls calls;
    std::unique_lock lock(mutex_);
    if (closed_) {
        return;
    }
    for (const std::string& one : linksOf(key)) {
        PeerPtr& peer = peers_[one];
        if (peer == nullptr) {
            peer = std::make_shared<Peer>();
            peer->key = one;
            const std::string name = agent_ + (one == key ? ' ' : one.back());
            peer->link = std::make_unique<Link>(
                *domain_, name, address_, [this, watch = &peer->watch] { stopWatching(*watch); });
        }
        peer->forgotten = false;
        peer->link->setPeer(address, calls);
        if (peer->link->busy()) {
            markBusy(peer);
        }
    }
    settle(Who::OTHER);
    unlock(lock, calls);
}

void FabricRail::losePeer(const std::string& key, const Status& why, bool forget) {
    Calls calls;
    std::unique_lock lock(mutex_);
    if (closed_) {
        return;
    }
    for (const std::string& one : linksOf(key)) {
        if (const auto found = peers_.find(one); found != peers_.end()) {
            const PeerPtr peer = found->second;
            inbound_->forget(peer->link->peer().instance);
            peer->forgotten = forget;
            peer->link->lose(why, calls);
            markBusy(peer);
        }
    }
    pass(calls);
    settle(Who::OTHER);
    unlock(lock, calls);
}

void FabricRail::markBusy(const PeerPtr& peer) {
    if (!std::exchange(peer->busy, true)) {
        busy_.push_back(peer);
    }
}

void FabricRail::run(FabricJob job) {
    Calls calls;
    std::unique_lock lock(mutex_);
    const auto found = peers_.find(linksOf(job.peer)[domain_->overSockets() && !job.read ? 1 : 0]);
    if (closed_ || found == peers_.end()) {
        const Status why =
            Status::disconnected("LIBFABRIC: no address of this agent is known to the lane");
        calls.push_back([done = std::move(job.done), why] { done(why); });
    } else {
        const PeerPtr peer = found->second;
        peer->link->add(std::move(job));
        markBusy(peer);
        pass(calls);
        settle(Who::OTHER);
    }
    unlock(lock, calls);
}

void FabricRail::wake() {
    Calls calls;
    std::unique_lock lock(mutex_);
    pass(calls);
    settle(Who::OTHER);
    unlock(lock, calls);
}

// The endpoint of a link comes and goes: so does its watch.
void FabricRail::follow(Peer& peer) {
    Endpoint* const endpoint = peer.link->endpoint();
    if (endpoint != nullptr && endpoint->fd() >= 0 && peer.watch.id == 0) {
        peer.watch = {endpoint->fd(), watchFd(endpoint->fd(), peer.key), false};
    }
}

void FabricRail::stopWatching(Watch& watch) {
    if (watch.id != 0) {
        services_.reactor().unwatch(std::exchange(watch.id, 0));
    }
}

// --- moving on

// Looks at everything once; true where something moved.
bool FabricRail::pass(Calls& calls) {
    if (inbound_ == nullptr) {
        return false;
    }
    bool moved = inbound_->step();
    if (inbound_->broken()) {
        reopen();
    }
    for (size_t i = 0; i < busy_.size(); ++i) {
        moved = busy_[i]->link->step(calls) || moved;
        follow(*busy_[i]);
    }
    // libfabric lowers a descriptor only when it is asked whether one may sleep on it.
    for (const PeerPtr& peer : busy_) {
        if (std::find(stepped_.begin(), stepped_.end(), peer) == stepped_.end()) {
            stepped_.push_back(peer);
        }
    }
    std::erase_if(busy_, [this](const PeerPtr& peer) {
        peer->busy = peer->link->busy();
        if (!peer->busy && peer->forgotten) {
            peers_.erase(peer->key);
        }
        return !peer->busy;
    });
    return moved;
}

void FabricRail::onReactor(const std::string& key) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
        again_.store(true, std::memory_order_seq_cst);
        if (lock.try_lock()) {
            again_.store(false, std::memory_order_relaxed);
        } else {
            return;  // who has it asks for another round
        }
    }
    if (closed_) {
        return;
    }
    Calls calls;
    if (resumeWanted_.exchange(false, std::memory_order_acq_rel)) {
        takeBack();
    }
    if (const auto found = peers_.find(key); !key.empty() && found != peers_.end()) {
        markBusy(found->second);
    }
    for (int i = 0; i < kPasses && pass(calls); ++i) {
    }
    settle(Who::REACTOR);
    unlock(lock, calls);
}

bool FabricRail::help() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || closed_) {
        return false;
    }
    Calls calls;
    const bool moved = pass(calls);
    settle(Who::POLLER);
    unlock(lock, calls);
    return moved;
}

// Makes sure that whatever comes next is noticed by somebody.
void FabricRail::settle(Who who) {
    if (closed_) {
        return;
    }
    if (who != Who::REACTOR && pollers_ != nullptr && pollId_ != 0 && pollers_->polled()) {
        leaveToPollers();
    } else if (!left_) {
        quiet() ? stepped_.clear() : askReactor();
    }
    plan();
}

void FabricRail::askReactor() {
    services_.reactor().run([weak = weak_from_this()] {
        if (const auto self = weak.lock()) {
            self->onReactor({});
        }
    });
}

// libfabric has nothing that its descriptors would not tell.
bool FabricRail::quiet() {
    std::vector<fid*> all;
    if (inbound_->endpoint().fd() >= 0) {
        all.push_back(inbound_->endpoint().waitable());
    }
    for (const PeerPtr& peer : stepped_) {
        Endpoint* const endpoint = peer->link->endpoint();
        if (endpoint != nullptr && endpoint->fd() >= 0) {
            all.push_back(endpoint->waitable());
        }
    }
    return all.empty() ||
           fi_trywait(domain_->fabric(), all.data(), static_cast<int>(all.size())) != -FI_EAGAIN;
}

// When to look without being told.
void FabricRail::plan() {
    Clock::time_point when = Clock::time_point::max();
    if (inbound_->works() && inbound_->endpoint().unsent()) {
        when = Clock::now() + kUnsentPeriod;
    }
    for (const PeerPtr& peer : busy_) {
        when = std::min(when, peer->link->lookAt());
    }
    if (watch_.fd < 0) {
        when = std::min(when, Clock::now() + (busy_.empty() ? kIdlePeriod : kPollPeriod));
    }
    if (timerFired_.exchange(false, std::memory_order_acq_rel)) {
        timer_ = 0;
    }
    if (timer_ != 0 && when >= timerAt_) {
        return;
    }
    if (timer_ != 0) {
        services_.reactor().stopTimer(std::exchange(timer_, 0));
    }
    timerAt_ = when;
    if (when == Clock::time_point::max()) {
        return;
    }
    timer_ = services_.reactor().startTimer(when, [weak = weak_from_this()] {
        if (const auto self = weak.lock()) {
            self->onTimer();
        }
    });
}

void FabricRail::onTimer() {
    timerFired_.store(true, std::memory_order_release);
    onReactor({});
}

void FabricRail::unlock(std::unique_lock<std::mutex>& lock, Calls& calls) {
    lock.unlock();
    if (again_.exchange(false, std::memory_order_seq_cst)) {
        askReactor();
    }
    for (const auto& call : std::exchange(calls, {})) {
        call();
    }
}

// --- callers who poll

void FabricRail::leaveToPollers() {
    const auto leave = [this](Watch& watch) {
        if (watch.id != 0 && !watch.left) {
            watch.left = services_.reactor().modify(watch.id, 0).ok();
        }
    };
    leave(watch_);
    for (const PeerPtr& peer : busy_) {
        leave(peer->watch);
    }
    if (!std::exchange(left_, true)) {
        pollers_->guard();
    }
}

void FabricRail::takeBack() {
    const auto take = [this](Watch& watch) {
        if (watch.id != 0 && std::exchange(watch.left, false)) {
            static_cast<void>(services_.reactor().modify(watch.id, EPOLLIN).ok());
        }
    };
    left_ = false;
    take(watch_);
    for (auto& [key, peer] : peers_) {
        take(peer->watch);
    }
}

void FabricRail::resumeReads() {
    resumeWanted_.store(true, std::memory_order_release);
    onReactor({});
}

}  // namespace nixl::fabric
