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
    return out;
}

bool Central::has(const std::string& name) const {
    return directory_->find(name) != nullptr;
}

// What is known already is only added to.
Status Central::takeEntry(const DirectoryEntry& entry) {
    LocalAgent& agent = *host_.agent;
    const std::optional<Known> known = agent.known(entry.who.name);
    const bool same = known.has_value() && known->who == entry.who && known->version != 0;
    if (same && entry.version != 0 && known->version >= entry.version) {
        return {};
    }
    const auto takeChanges = [&]() -> Result<bool> {
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
        Result<bool> whole = takeChanges();
        const std::optional<Known> now = agent.known(entry.who.name);
        if (whole.ok() && whole.value() && now.has_value() && now->version >= entry.version) {
            return {};
        }
    }
    Result<LocalAgent::Taken> taken = agent.take(*entry.blob, entry.who, false);
    if (!taken.ok()) {
        return taken.status();
    }
    Result<bool> whole = takeChanges();
    if (!whole.ok()) {
        return whole.status();
    }
    const MutexLock lock(mutex_);
    learnt_[entry.who.name] = entry.who;
    return {};
}

void Central::learn(const std::string& name) {
    if (const EntryPtr entry = directory_->find(name); entry != nullptr) {
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
    if (entry.value().has_value()) {
        inPool([waiting, found = *entry.value()](Central& self) {
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
    return taken.ok() ? Status() : taken.status();
}

}  // namespace nixl::exchange
