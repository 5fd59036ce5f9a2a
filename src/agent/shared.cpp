// See shared.h.
#include "agent/shared.h"

#include <algorithm>

#include "base/log.h"
#include "base/sha256.h"
#include "session/wire.h"

namespace nixl::agent {

AgentShared::AgentShared(peer::Identity identity,
                         peer::Key grant,
                         std::chrono::microseconds busy_poll)
    : busyPoll(busy_poll), self_(std::move(identity)), grant_(grant) {
    const MutexLock lock(mutex_);
    grants_[peer::grantId(grant)] = {grant, true, {}};
}

Result<peer::RegionPin> AgentShared::pin(uint64_t region_id, uint32_t generation) {
    if (closed()) {
        return Status::disconnected("agent \"" + self_.name + "\" has been destroyed");
    }
    memory::RegionPtr region = regions_.byId(region_id);
    if (!region || region->generation != generation || !region->pin()) {
        return Status::notFound("agent \"" + self_.name + "\": region " +
                                std::to_string(region_id) +
                                " has been deregistered since its metadata was read");
    }
    return peer::RegionPin(std::move(region));
}

Status AgentShared::deliverLocal(const peer::Identity& from, std::string message) {
    if (closed()) {
        return Status::disconnected("agent \"" + self_.name + "\" has been destroyed");
    }
    {
        MutexLock lock(mutex_);
        if (queuedBytes_ + message.size() > kMaxQueuedBytes) {
            return Status::notAllowed("agent \"" + self_.name + "\" has " +
                                      std::to_string(queuedBytes_) +
                                      " bytes of notifications it has not taken; the limit is " +
                                      std::to_string(kMaxQueuedBytes));
        }
    }
    deliver(from, std::move(message), nullptr);
    return {};
}

std::optional<peer::Key> AgentShared::grantKey(peer::GrantId grant) {
    MutexLock lock(mutex_);
    const auto found = grants_.find(grant);
    return found == grants_.end() ? std::nullopt : std::optional(found->second.key);
}

Result<memory::RegionPtr> AgentShared::region(peer::GrantId grant,
                                              uint64_t id,
                                              uint32_t generation,
                                              OpType /*op*/) {
    {
        MutexLock lock(mutex_);
        const auto found = grants_.find(grant);
        if (found == grants_.end()) {
            return Status::notAllowed("agent \"" + self_.name + "\": unknown grant");
        }
        const std::vector<uint64_t>& opened = found->second.regions;
        if (!found->second.all && !std::binary_search(opened.begin(), opened.end(), id)) {
            return Status::notAllowed("agent \"" + self_.name +
                                      "\": the grant does not open region " + std::to_string(id));
        }
    }
    memory::RegionPtr region = regions_.byId(id);
    if (closed() || !region || region->generation != generation || region->revoked()) {
        return Status::notFound("agent \"" + self_.name + "\": region " + std::to_string(id) +
                                " has been deregistered since its metadata was read");
    }
    return region;
}

peer::Key AgentShared::partialGrant(std::vector<uint64_t> regions) {
    std::sort(regions.begin(), regions.end());
    regions.erase(std::unique(regions.begin(), regions.end()), regions.end());
    MutexLock lock(mutex_);
    if (const auto known = partial_.find(regions); known != partial_.end()) {
        return known->second;
    }
    peer::Key key{};
    base::randomBytes(key);
    if (partial_.size() >= manyGrants_) {
        forgetGrants();
    }
    grants_[peer::grantId(key)] = {key, false, regions};
    partial_[std::move(regions)] = key;
    return key;
}

// Those that open nothing any more: all their regions are gone.
void AgentShared::forgetGrants() {
    for (auto entry = partial_.begin(); entry != partial_.end();) {
        const auto& [opened, key] = *entry;
        const bool useless =
            !opened.empty() && std::none_of(opened.begin(), opened.end(), [&](uint64_t id) {
                return static_cast<bool>(regions_.byId(id));
            });
        if (useless) {
            grants_.erase(peer::grantId(key));
            entry = partial_.erase(entry);
        } else {
            ++entry;
        }
    }
    manyGrants_ = std::max<size_t>(4096, 2 * partial_.size());
}

std::string markedForLane(std::string_view lane, std::string_view message) {
    std::string marked(kLaneMark);
    marked += lane;
    marked.push_back('\0');
    marked += message;
    return marked;
}

void AgentShared::listenToLane(std::string_view lane, PluginServices::LaneListener call) {
    MutexLock lock(mutex_);
    if (call == nullptr) {
        laneListeners_.erase(std::string(lane));
    } else {
        laneListeners_[std::string(lane)] = std::move(call);
    }
}

void AgentShared::deliverToLane(const peer::Identity& from, std::string_view message) {
    const size_t end = message.find('\0');
    PluginServices::LaneListener call;
    if (end != std::string_view::npos) {
        MutexLock lock(mutex_);
        const auto found = laneListeners_.find(std::string(message.substr(0, end)));
        if (found != laneListeners_.end()) {
            call = found->second;
        }
    }
    if (call != nullptr) {
        call({from.name, from.incarnation, from == self_}, message.substr(end + 1));
    }
}

void AgentShared::deliver(const peer::Identity& from,
                          std::string message,
                          std::shared_ptr<void> credit) {
    if (std::string_view(message).starts_with(kLaneMark)) {
        return deliverToLane(from, std::string_view(message).substr(kLaneMark.size()));
    }
    {
        MutexLock lock(mutex_);
        Sender& heard = heard_[from.name];
        if (!(heard.who == from)) {
            heard.who = from;
        }
        heard.last = ++heardCount_;
        queuedBytes_ += message.size() + sizeof(Queued);
        queue_.push_back({from, std::move(message), std::move(credit)});
    }
    signal_.raise();
}

std::vector<Notification> AgentShared::takeNotifications() {
    if (!hasNotifications()) {
        return {};  // as most who poll find; an empty deque would allocate
    }
    std::deque<Queued> taken;
    {
        MutexLock lock(mutex_);
        taken.swap(queue_);
        queuedBytes_ = 0;
    }
    std::vector<Notification> out;
    out.reserve(taken.size());
    for (Queued& one : taken) {
        out.push_back({std::move(one.from.name), std::move(one.message)});
    }
    return out;
}

bool AgentShared::hasNotifications() const {
    MutexLock lock(mutex_);
    return !queue_.empty();
}

std::optional<peer::Identity> AgentShared::lastSender(const std::string& name) const {
    MutexLock lock(mutex_);
    const auto found = heard_.find(name);
    return found == heard_.end() ? std::nullopt : std::optional(found->second.who);
}

size_t AgentShared::senders() const {
    MutexLock lock(mutex_);
    return heard_.size();
}

void AgentShared::forgetSenders(const std::function<bool(const peer::Identity&)>& alive) {
    std::vector<Sender> gone;
    {
        MutexLock lock(mutex_);
        if (heard_.size() <= manySenders_) {
            return;
        }
        for (const auto& [name, sender] : heard_) {
            gone.push_back(sender);
        }
    }
    std::erase_if(gone, [&](const Sender& sender) { return alive(sender.who); });
    // Whether one of whom nothing is known still lives is not known either: the latest are kept.
    std::sort(gone.begin(), gone.end(),
              [](const Sender& a, const Sender& b) { return a.last < b.last; });
    gone.resize(gone.size() - std::min(gone.size(), kManySenders / 2));
    MutexLock lock(mutex_);
    for (const Sender& sender : gone) {
        const auto found = heard_.find(sender.who.name);
        if (found != heard_.end() && found->second.last == sender.last) {
            heard_.erase(found);
        }
    }
    manySenders_ = std::max(kManySenders, 2 * heard_.size());
}

bool AgentShared::addUndelivered(const std::string& peer, const Status& why) {
    failures.fetch_add(1, std::memory_order_relaxed);
    MutexLock lock(mutex_);
    const bool first = undelivered_.empty();
    Undelivered& entry = undelivered_[peer];
    ++entry.count;
    entry.why = why.message();
    return first;
}

void AgentShared::reportUndelivered() {
    std::map<std::string, Undelivered> all;
    {
        MutexLock lock(mutex_);
        all.swap(undelivered_);
    }
    for (const auto& [peer, entry] : all) {
        const bool one = entry.count == 1;
        base::log(LogLevel::WARN,
                  (one ? "a notification" : std::to_string(entry.count) + " notifications") +
                      std::string(" to agent \"") + peer + "\" " + (one ? "was" : "were") +
                      " not delivered: " + entry.why);
    }
}

}  // namespace nixl::agent
