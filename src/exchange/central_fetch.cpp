// Central: the metadata of other agents.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "exchange/central.h"

namespace nixl::exchange {
namespace {

using Clock = std::chrono::steady_clock;

// Parts, and stores that cannot be watched, are asked again.
constexpr std::chrono::milliseconds kAskAgain{20};

}  // namespace

std::vector<std::string> Central::names() const {
    std::vector<std::string> out = directory_->names();
    std::erase(out, host_.agent->self().name);
    std::map<std::string, peer::Identity> forgotten;
    {
        const MutexLock lock(mutex_);
        forgotten = forgotten_;
    }
    for (const auto& [name, who] : forgotten) {
        if (entryOf(name) == nullptr) {
            std::erase(out, name);
        }
    }
    return out;
}

bool Central::has(const std::string& name) const {
    return entryOf(name) != nullptr;
}

EntryPtr Central::entryOf(const std::string& name) const {
    EntryPtr entry = directory_->find(name);
    const MutexLock lock(mutex_);
    const auto found = forgotten_.find(name);
    const bool counts =
        entry == nullptr || found == forgotten_.end() || found->second != entry->who;
    return counts ? entry : nullptr;
}

void Central::forget(const std::string& name) {
    if (const EntryPtr entry = directory_->find(name); entry != nullptr) {
        const MutexLock lock(mutex_);
        forgotten_[name] = entry->who;
        learnt_.erase(name);
    }
}

void Central::remember(const std::string& name) {
    const MutexLock lock(mutex_);
    forgotten_.erase(name);
}

// What is known already is only added to.
Status Central::takeEntry(const DirectoryEntry& entry) {
    LocalAgent& agent = *host_.agent;
    const std::optional<Known> known = agent.known(entry.who.name);
    const bool same = known.has_value() && known->who == entry.who && known->version != 0;
    if (same && entry.version != 0 && known->version >= entry.version) {
        return {};
    }
    const auto take_changes = [&]() -> Result<bool> {
        for (const auto& change : entry.changes) {
            Result<LocalAgent::Taken> taken = agent.take(*change, entry.who, false);
            if (!taken.ok()) {
                return taken.status();
            }
            if (taken.value() == LocalAgent::Taken::MISSED) {
                return false;
            }
        }
        return true;
    };
    if (same && !entry.changes.empty()) {
        Result<bool> whole = take_changes();
        const std::optional<Known> now = agent.known(entry.who.name);
        if (whole.ok() && whole.value() && now.has_value() && now->version >= entry.version) {
            return {};
        }
    }
    Result<LocalAgent::Taken> taken = agent.take(*entry.blob, entry.who, false);
    if (!taken.ok()) {
        return taken.status();
    }
    Result<bool> whole = take_changes();
    if (!whole.ok()) {
        return whole.status();
    }
    const MutexLock lock(mutex_);
    learnt_[entry.who.name] = entry.who;
    return {};
}

void Central::learn(const std::string& name) {
    if (const EntryPtr entry = entryOf(name); entry != nullptr) {
        if (entry->who.name != host_.agent->self().name) {
            if (const Status status = takeEntry(*entry); !status.ok()) {
                base::log(LogLevel::DEBUG, "not taken in: " + status.message());
            }
        }
        return;
    }
    if (!directory_->isSynced()) {
        return;
    }
    // It left while there was a session with it.
    std::optional<peer::Identity> gone;
    {
        const MutexLock lock(mutex_);
        if (const auto found = learnt_.find(name); found != learnt_.end()) {
            gone = found->second;
        }
    }
    if (gone.has_value() && !host_.alive(*gone)) {
        {
            const MutexLock lock(mutex_);
            learnt_.erase(name);
        }
        host_.agent->drop(*gone);
    }
}

void Central::refresh(const std::string& name) {
    if (directory_->follows()) {
        return;  // what changes is told
    }
    {
        const MutexLock lock(mutex_);
        if (ended_ || !learnt_.contains(name)) {
            return;
        }
    }
    store_->get(keyOf(name, "metadata"),
                [weak = weak_from_this(), name](const Result<std::optional<StoreEntry>>& got) {
                    const auto self = weak.lock();
                    if (self == nullptr || !got.ok() || !got.value().has_value()) {
                        return;
                    }
                    self->inPool([name, entry = *got.value()](Central& inside) {
                        if (const Status status = inside.takeValue(name, entry); !status.ok()) {
                            base::log(LogLevel::DEBUG, "not taken in: " + status.message());
                        }
                    });
                });
}

void Central::entered(const EntryPtr& now, const EntryPtr& before) {
    const std::string& name = now->who.name;
    if (name == host_.agent->self().name) {
        return ownEntered(now);
    }
    std::vector<WaitingPtr> waiting;
    bool follow = false;
    {
        const MutexLock lock(mutex_);
        if (ended_) {
            return;
        }
        for (const WaitingPtr& one : waiting_) {
            if (one->name == name && one->label.empty()) {
                waiting.push_back(one);
            }
        }
        follow = learnt_.contains(name);
    }
    if (follow) {
        inPool([name](Central& self) { self.learn(name); });
    }
    for (const WaitingPtr& one : waiting) {
        inPool([one](Central& self) { self.tryFetch(one); });
    }
    if (before == nullptr) {
        host_.changed(name, true);
    }
}

void Central::left(const EntryPtr& was, bool withdrawn) {
    const peer::Identity who = was->who;
    if (who.name == host_.agent->self().name) {
        return ownLeft(was);
    }
    bool drop = false;
    {
        const MutexLock lock(mutex_);
        const auto found = learnt_.find(who.name);
        // Transfers with an agent that lives go on, whatever became of its entry.
        drop = !ended_ && found != learnt_.end() && found->second == who &&
               (withdrawn || !host_.alive(who));
        if (drop) {
            learnt_.erase(found);
        }
    }
    if (drop) {
        inPool([who](Central& self) { self.host_.agent->drop(who); });
    }
    remember(who.name);
    host_.changed(who.name, false);
}

void Central::synced() {
    std::vector<WaitingPtr> waiting;
    {
        const MutexLock lock(mutex_);
        waiting.assign(waiting_.begin(), waiting_.end());
    }
    for (const WaitingPtr& one : waiting) {
        inPool([one](Central& self) { self.tryFetch(one); });
    }
}

void Central::fetch(const std::string& name,
                    const std::string& label,
                    Deadline deadline,
                    Done done) {
    auto waiting = std::make_shared<Waiting>();
    waiting->name = name;
    waiting->label = label == "metadata" ? std::string() : label;
    waiting->deadline = deadline;
    waiting->done = std::move(done);
    {
        const MutexLock lock(mutex_);
        forgotten_.erase(name);
        if (!ended_) {
            waiting_.insert(waiting);
        }
    }
    tryFetch(waiting);
    const MutexLock lock(mutex_);
    if (!waiting_.contains(waiting)) {
        return;
    }
    at(deadline, [waiting](Central& self) {
        self.endFetch(
            waiting,
            Status::timeout("agent \"" + waiting->name + "\"" +
                            (waiting->label.empty() ? "" : ", part \"" + waiting->label + "\",") +
                            " is not in " + self.describe() + "; the time to wait for it is up"));
    });
}

void Central::endFetch(const WaitingPtr& waiting, const Status& status) {
    {
        const MutexLock lock(mutex_);
        if (waiting_.erase(waiting) == 0) {
            return;
        }
    }
    waiting->done(status);
}

void Central::tryFetch(const WaitingPtr& waiting) {
    {
        const MutexLock lock(mutex_);
        if (!waiting_.contains(waiting)) {
            return;
        }
    }
    if (!directory_->follows() || !waiting->label.empty()) {
        return fetchedByKey(waiting, 0, std::optional<StoreEntry>());
    }
    if (const EntryPtr entry = directory_->find(waiting->name); entry != nullptr) {
        return endFetch(waiting, takeEntry(*entry));
    }
    if (const Status why = directory_->unreadable(waiting->name); !why.ok()) {
        endFetch(waiting, why);
    }
}

// Under the two forms that a key may have, one after the other. `form`: how many were asked for.
void Central::fetchedByKey(const WaitingPtr& waiting,
                           size_t form,
                           Result<std::optional<StoreEntry>> entry) {
    if (!entry.ok()) {
        return tryAgain(waiting, entry.status());
    }
    if (const std::optional<StoreEntry>& got = entry.value(); got.has_value()) {
        inPool([waiting, found = *got](Central& self) {
            self.endFetch(waiting, self.takeValue(waiting->name, found));
        });
        return;
    }
    const std::string tail =
        waiting->name + "/" + (waiting->label.empty() ? "metadata" : waiting->label);
    const std::string forms[] = {written_ + tail, root_ + tail, root_ + "/" + tail};
    while (form < std::size(forms) && form > 0 && forms[form] == forms[0]) {
        ++form;
    }
    if (form >= std::size(forms)) {
        return tryAgain(waiting, {});
    }
    store_->get(forms[form],
                [weak = weak_from_this(), waiting, form](Result<std::optional<StoreEntry>> got) {
                    if (const auto self = weak.lock(); self != nullptr) {
                        self->fetchedByKey(waiting, form + 1, std::move(got));
                    }
                });
}

void Central::tryAgain(const WaitingPtr& waiting, const Status& why) {
    const Deadline next = Clock::now() + kAskAgain;
    if (!why.ok() && (next >= waiting->deadline || why.code() == ErrorCode::NOT_ALLOWED)) {
        return endFetch(waiting, why);
    }
    at(next, [waiting](Central& self) { self.tryFetch(waiting); });
}

Status Central::takeValue(const std::string& name, const StoreEntry& entry) {
    Result<metadata::Blob> blob = metadata::decodeBlob(entry.value);
    if (!blob.ok()) {
        return {blob.status().code(),
                store_->describe() + ", \"" + entry.key + "\": " + blob.status().message()};
    }
    const peer::Identity who{blob.value().name, blob.value().incarnation};
    if (who.name != name) {
        return Status::mismatch(store_->describe() + ", \"" + entry.key +
                                "\": metadata of an agent with another name, \"" + who.name + "\"");
    }
    Result<LocalAgent::Taken> taken = host_.agent->take(entry.value, who, false);
    if (!taken.ok()) {
        return taken.status();
    }
    if (!blob.value().partial) {
        const MutexLock lock(mutex_);
        learnt_[name] = who;
    }
    return {};
}

}  // namespace nixl::exchange
