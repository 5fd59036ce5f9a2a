// See fabric_rail.h.
#include "fabric_rail.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include <poll.h>
#include <rdma/fi_errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

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
    address_.process = static_cast<uint32_t>(getpid());
    const char* const network = domain_->info().fabric_attr->name;
    address_.network = network == nullptr ? "" : network;
    inbound_ = std::make_unique<Inbound>(*domain_, address_.instance);
    NIXL_RETURN_IF_ERROR(inbound_->open());
    address_.endpoint = inbound_->endpoint().name();
    watch_.fd = inbound_->endpoint().fd();
    if (watch_.fd < 0) {
        NIXL_RETURN_IF_ERROR(openBell());
        watch_.fd = bell_;
    }
    watch_.id = watchFd(watch_.fd, {});
    if (watch_.id == 0) {
        return Status::backend(domain_->text("watching its descriptor", -errno));
    }
    pollers_ = services_.pollers();
    pollId_ = pollers_ == nullptr ? 0 : pollers_->add(watch_.fd, weak_from_this());
    return {};
}

// A provider without a descriptor to sleep on: peers ring when they have begun something.
Status FabricRail::openBell() {
    bell_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    char name[40];
    const int size = std::snprintf(name, sizeof(name), "nixl-fabric-%016llx%08x",
                                   static_cast<unsigned long long>(randomNumber()),
                                   static_cast<unsigned>(getpid()));
    address_.bell.assign(name, static_cast<size_t>(size));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name, static_cast<size_t>(size));
    if (bell_ < 0 || bind(bell_, reinterpret_cast<sockaddr*>(&address),
                          static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 +
                                                 static_cast<size_t>(size))) != 0) {
        return Status::backend("LIBFABRIC: no socket to be woken by", errno);
    }
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

FabricRail::~FabricRail() {
    close();
    if (bell_ >= 0) {
        ::close(bell_);
    }
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
        peers_.clear();
    } else {
        // A peer may still copy to or from memory here: what it needs stays until the process ends.
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
    while (fence != 0 && !closed_ && !inbound_->fenced(fence) && Clock::now() < limit) {
        if (pass(calls)) {
            continue;
        }
        const int fd = inbound_->endpoint().fd();
        unlock(lock, calls);
        pollfd wait{fd, POLLIN, 0};
        fd < 0 ? std::this_thread::sleep_for(kPollPeriod) : void(poll(&wait, 1, 1));
        lock.lock();
    }
    if (fence != 0 && !closed_ && !inbound_->fenced(fence) && !domain_->closingFences()) {
        // Somebody who does not answer may be in the middle of a write.
        services_.log(LogLevel::INFO, label() +
                                          ": a peer did not let go of deregistered memory; "
                                          "all connections are made anew");
        reopen();
    }
    domain_->unmap(mapped);
    settle(Who::OTHER);
    unlock(lock, calls);
}

// Closes all connections of peers and listens again at the same place.
void FabricRail::reopen() {
    const bool own = watch_.fd != bell_;  // the descriptor is the endpoint's
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

void FabricRail::addPeer(const std::string& key, const RailAddress& address) {
    Calls calls;
    std::unique_lock lock(mutex_);
    PeerPtr& peer = peers_[key];
    if (peer == nullptr) {
        peer = std::make_shared<Peer>();
        peer->key = key;
        peer->link = std::make_unique<Link>(*domain_, agent_, address_.bell,
                                            [this, watch = &peer->watch] { stopWatching(*watch); });
    }
    peer->forgotten = false;
    peer->link->setPeer(address, calls);
    if (peer->link->busy()) {
        markBusy(peer);
        settle(Who::OTHER);
    }
    unlock(lock, calls);
}

void FabricRail::losePeer(const std::string& key, const Status& why, bool forget) {
    Calls calls;
    std::unique_lock lock(mutex_);
    if (closed_) {
        return;
    }
    inbound_->forget(key);
    if (const auto found = peers_.find(key); found != peers_.end()) {
        const PeerPtr peer = found->second;
        peer->forgotten = forget;
        peer->link->lose(why, calls);
        markBusy(peer);
        pass(calls);
    }
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
    const auto found = peers_.find(job.peer);
    if (closed_ || found == peers_.end()) {
        const Status why =
            Status::disconnected("LIBFABRIC: no address of this agent is known to the lane");
        calls.push_back([done = std::move(job.done), why] { done(why); });
    } else {
        const PeerPtr peer = found->second;
        peer->link->add(std::move(job));
        markBusy(peer);
        peer->link->step(calls);
        follow(*peer);
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
    if (std::string name = peer.link->takeRing(); !name.empty()) {
        rings_.insert(std::move(name));
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
    std::erase_if(busy_, [this](const PeerPtr& peer) {
        peer->busy = peer->link->busy();
        if (!peer->busy && peer->forgotten) {
            peers_.erase(peer->key);
        }
        return !peer->busy;
    });
    ringBells();
    return moved;
}

void FabricRail::ringBells() {
    if (bell_ < 0) {
        return;
    }
    rings_.merge(inbound_->takeRings());
    for (const std::string& name : std::exchange(rings_, {})) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        const size_t size = std::min(name.size(), sizeof(address.sun_path) - 1);
        std::memcpy(address.sun_path + 1, name.data(), size);
        const char one = 1;
        const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + size);
        static_cast<void>(sendto(bell_, &one, 1, MSG_DONTWAIT | MSG_NOSIGNAL,
                                 reinterpret_cast<sockaddr*>(&address), length));
    }
}

void FabricRail::drainBell() {
    char bytes[64];
    bool rung = false;
    while (bell_ >= 0 && recv(bell_, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
        rung = true;
    }
    if (rung) {  // it does not say who
        for (const auto& [key, peer] : peers_) {
            markBusy(peer);
        }
    }
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
    drainBell();
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
    drainBell();
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
    ringBells();
    if (who != Who::REACTOR && pollers_ != nullptr && pollId_ != 0 && pollers_->polled()) {
        leaveToPollers();
    } else if (!left_ && !quiet()) {
        askReactor();
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
    for (const PeerPtr& peer : busy_) {
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
        if (bell_ >= 0 && !left_) {
            when = std::min(when, Clock::now() + kPollPeriod);
        }
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
