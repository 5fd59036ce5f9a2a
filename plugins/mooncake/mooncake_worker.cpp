// See mooncake_worker.h.
#include "mooncake_worker.h"

#include <algorithm>
#include <system_error>

#include <pthread.h>

namespace nixl::mooncake {

MooncakeWorker::~MooncakeWorker() {
    stop();
}

Status MooncakeWorker::start() {
    const NoSignals for_it;
    try {
        thread_ = std::thread([this] { loop(); });
    } catch (const std::system_error& error) {
        return Status::backend(std::string("MOONCAKE: no thread: ") + error.what(),
                               error.code().value());
    }
    return {};
}

void MooncakeWorker::stop() {
    if (!thread_.joinable()) {
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
    peers_.clear();
    asking_->retire(asking_->existing(), true);
    endRetired();
}

MooncakeWorker::PeerPtr MooncakeWorker::peer(const std::string& key,
                                             const std::string& name,
                                             const std::string& segment) {
    const std::lock_guard lock(mutex_);
    PeerPtr& known = peers_[key];
    if (known == nullptr) {
        const auto before = former_.find(key);
        known = before == former_.end() ? nullptr : before->second.lock();
    }
    if (known == nullptr || known->segment() != segment) {
        known = std::make_shared<MooncakePeer>(name, segment, asking_,
                                               [weak = weak_from_this()](const PeerPtr& peer) {
                                                   if (const auto self = weak.lock()) {
                                                       self->busy(peer);
                                                   }
                                               });
    }
    return known;
}

MooncakeWorker::PeerPtr MooncakeWorker::find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto found = peers_.find(key);
    return found == peers_.end() ? nullptr : found->second;
}

void MooncakeWorker::forget(const std::string& key) {
    const std::lock_guard lock(mutex_);
    std::erase_if(former_, [](const auto& one) { return one.second.expired(); });
    if (const auto found = peers_.find(key); found != peers_.end()) {
        former_[key] = found->second;
        peers_.erase(found);
    }
}

std::vector<MooncakeWorker::PeerPtr> MooncakeWorker::peers() {
    const std::lock_guard lock(mutex_);
    std::vector<PeerPtr> all;
    for (const auto& [key, peer] : peers_) {
        all.push_back(peer);
    }
    for (const auto& [key, weak] : former_) {
        if (const PeerPtr peer = weak.lock(); peer != nullptr) {
            all.push_back(peer);
        }
    }
    return all;
}

void MooncakeWorker::busy(const PeerPtr& peer) {
    bool wake = false;
    {
        const std::lock_guard lock(mutex_);
        if (std::find(busy_.begin(), busy_.end(), peer) == busy_.end()) {
            busy_.push_back(peer);
        }
        wake = asleep_;
    }
    if (wake) {
        changed_.notify_all();
    }
}

void MooncakeWorker::loop() {
    pthread_setname_np(pthread_self(), "nixl-mooncake");
    for (;;) {
        {
            const std::lock_guard lock(mutex_);
            if (stop_) {
                return;
            }
        }
        const bool moved = look();
        endRetired();
        rest(moved);
    }
}

// Whether something has happened.
bool MooncakeWorker::look() {
    std::vector<PeerPtr> now;
    {
        const std::lock_guard lock(mutex_);
        now = busy_;
    }
    bool moved = false;
    for (const PeerPtr& peer : now) {
        moved = peer->advance() || moved;
    }
    const std::lock_guard lock(mutex_);
    std::erase_if(busy_, [](const PeerPtr& peer) { return peer->idle(); });
    if (!busy_.empty()) {
        lastBusy_ = Clock::now();
    }
    return moved;
}

void MooncakeWorker::endRetired() {
    if (retiring_) {
        for (const PeerPtr& peer : peers()) {
            peer->advance();  // lets go of it
        }
    }
    Asking::Retired retired = asking_->takeRetired();
    retiring_ = retired.more;
    retired.unused.clear();
    for (const std::shared_ptr<Engine>& engine : retired.forced) {
        if (!engine->end()) {
            asking_->retireAgain(engine);
            retiring_ = true;
            continue;
        }
        for (const PeerPtr& peer : peers()) {
            peer->engineEnded(engine);
        }
    }
}

void MooncakeWorker::rest(bool moved) {
    std::unique_lock lock(mutex_);
    if (stop_) {
        return;
    }
    rest_ = moved ? kLeastRest : std::min(rest_ * 2, kMostRest);
    const bool awake = !busy_.empty() || retiring_ || Clock::now() < lastBusy_ + kStayAwake;
    if (awake) {
        changed_.wait_for(lock, rest_);
        return;
    }
    asleep_ = true;
    changed_.wait(lock, [this] { return stop_ || !busy_.empty(); });
    asleep_ = false;
    rest_ = kLeastRest;
}

}  // namespace nixl::mooncake
