// See core.h.
#include "exchange_tcp/core.h"

#include <algorithm>

#include <sys/resource.h>

namespace nixl::exchange_tcp {

namespace {

using exchange::Known;
using exchange::LocalAgent;

std::atomic<size_t>& openConnections() {
    static constinit std::atomic<size_t> count{0};
    return count;
}

Status taken(const std::string& name) {
    return Status::notAllowed(
        "an agent named \"" + name +
        "\" is known here already; without an auth_key only the connection that its metadata came "
        "over may replace it, and another agent of this name only after that one has gone or has "
        "been removed");
}

}  // namespace

std::optional<Owners::Owner> Owners::ownerOf(const Known& known) const {
    const MutexLock lock(mutex_);
    const auto found = owners_.find(known.who.name);
    if (found == owners_.end() || found->second.who != known.who) {
        return std::nullopt;
    }
    return found->second;
}

void Owners::set(const Speaker& speaker) {
    const MutexLock lock(mutex_);
    Owner& owner = owners_[speaker.who.name];
    if (owner.connection != 0 && --owned_[owner.connection] == 0) {
        owned_.erase(owner.connection);
    }
    owner = {speaker.who, speaker.connection, speaker.asked};
    owned_[speaker.connection] += 1;
}

Result<Owners::Taken> Owners::take(const Speaker& speaker, std::string_view blob, uint64_t& stale) {
    const MutexLock one(taking_);
    const auto known = agent_.known(speaker.who.name);
    const auto owner = known ? ownerOf(*known) : std::nullopt;
    bool needs_grant = false;
    if (known && !speaker.asked && !speaker.proven) {
        const bool same = known->who == speaker.who;
        if (owner && (owner->connection == speaker.connection || owner->connection == 0)) {
            // The connection it came over, or one after that has gone.
        } else if (same && owner && owner->asked) {
            stale = owner->connection;  // its own word counts
            return Taken::BEFORE;
        } else if (same && !owner) {
            needs_grant = true;  // the application has it from elsewhere
        } else {
            return taken(speaker.who.name);
        }
    }
    auto result = agent_.take(blob, speaker.who, needs_grant);
    if (result.ok() && result.value() != Taken::MISSED && agent_.known(speaker.who.name)) {
        set(speaker);
    }
    return result;
}

Result<Owners::Taken> Owners::update(const Speaker& speaker, std::string_view blob) {
    const MutexLock one(taking_);
    const auto known = agent_.known(speaker.who.name);
    if (!known || known->who != speaker.who) {
        return Status::notFound("agent \"" + speaker.who.name + "\" is not known here any more");
    }
    const auto owner = ownerOf(*known);
    if (!speaker.proven && (!owner || owner->connection != speaker.connection)) {
        return Taken::BEFORE;  // another connection tells of it
    }
    return agent_.take(blob, speaker.who, false);
}

Status Owners::drop(const Speaker& speaker) {
    const MutexLock one(taking_);
    const auto known = agent_.known(speaker.who.name);
    if (!known) {
        return {};
    }
    const auto owner = ownerOf(*known);
    if (known->who != speaker.who ||
        (!speaker.proven && (!owner || owner->connection != speaker.connection))) {
        return Status::notAllowed(
            "agent \"" + speaker.who.name +
            "\" may only be taken back over the connection that its metadata came over, or with "
            "the auth_key");
    }
    agent_.drop(speaker.who);
    forget(speaker.who.name);
    return {};
}

void Owners::ended(uint64_t connection) {
    const MutexLock lock(mutex_);
    if (owned_.erase(connection) == 0) {
        return;
    }
    for (auto& [name, owner] : owners_) {
        if (owner.connection == connection) {
            owner.connection = 0;
        }
    }
}

void Owners::forget(const std::string& name) {
    const MutexLock lock(mutex_);
    const auto found = owners_.find(name);
    if (found == owners_.end()) {
        return;
    }
    const uint64_t connection = found->second.connection;
    if (connection != 0 && --owned_[connection] == 0) {
        owned_.erase(connection);
    }
    owners_.erase(found);
}

bool Owners::owns(uint64_t connection) const {
    const MutexLock lock(mutex_);
    return owned_.contains(connection);
}

size_t ExchangeBudget::idleConnections() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return 256;
    }
    return static_cast<size_t>(std::clamp<rlim_t>(limit.rlim_cur / 4, 64, 16384));
}

size_t ExchangeBudget::connections() {
    return openConnections().load();
}

void ExchangeBudget::enter() {
    openConnections().fetch_add(1);
}

void ExchangeBudget::leave() {
    openConnections().fetch_sub(1);
}

bool ExchangeBudget::reserve(size_t bytes) {
    size_t before = bytes_.load();
    do {
        if (before + bytes > kMaxBytes) {
            return false;
        }
    } while (!bytes_.compare_exchange_weak(before, before + bytes));
    return true;
}

}  // namespace nixl::exchange_tcp
