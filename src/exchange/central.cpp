// See central.h. This file: the agent's own metadata; others' are in central_fetch.cpp.
#include "exchange/central.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <utility>

#include "base/log.h"

namespace nixl::exchange {
namespace {

using Clock = std::chrono::steady_clock;

// Registrations come in bursts: they are gathered for so long.
constexpr std::chrono::milliseconds kGather{2};
constexpr std::chrono::milliseconds kRetry{5000};
constexpr std::chrono::milliseconds kRepair{1000};
// The whole is published anew after so many changes, or when they are half as long as it.
constexpr size_t kMaxChanges = 64;

std::string rootOf(std::string space) {
    while (!space.empty() && space.back() == '/') {
        space.pop_back();
    }
    return space + "/";
}

// Of this agent object alone: one of the same name may publish changes beside it.
std::string changeLabel(const peer::Identity& self, uint64_t version) {
    std::array<char, 32> text{};
    static_cast<void>(std::snprintf(text.data(), text.size(), "changes/%02x%02x%02x%02x%08x",
                                    self.incarnation[0], self.incarnation[1], self.incarnation[2],
                                    self.incarnation[3], static_cast<unsigned>(version)));
    return text.data();
}

}  // namespace

Central::Central(std::shared_ptr<MetadataStore> store, const std::string& space, Host host)
    : store_(std::move(store)),
      written_((space.empty() ? std::string(kDefaultSpace) : space) + "/"),
      root_(rootOf(space.empty() ? std::string(kDefaultSpace) : space)),
      host_(std::move(host)),
      directory_(Directory::open(store_, root_)) {}

void Central::start() {
    directory_->subscribe(shared_from_this());
}

std::string Central::keyOf(const std::string& name, const std::string& label) const {
    return written_ + name + "/" + label;
}

std::string Central::describe() const {
    std::string out = store_->describe() + " (namespace " + root_.substr(0, root_.size() - 1) + ")";
    if (const Status trouble = directory_->trouble(); !trouble.ok()) {
        out += ", which is not followed at the moment: " + trouble.message();
    }
    return out;
}

std::map<std::string, uint64_t> Central::stats() const {
    const MutexLock lock(mutex_);
    return {{"central_agents", directory_->size()},
            {"central_wholes", wholes_},
            {"central_changes", changes_},
            {"central_bytes", bytes_}};
}

void Central::inPool(std::function<void(Central&)> task) {
    const MutexLock lock(hostMutex_);
    if (!hostGone_) {
        host_.pool->run([weak = weak_from_this(), task = std::move(task)] {
            if (const auto self = weak.lock(); self != nullptr) {
                task(*self);
            }
        });
    }
}

void Central::at(Deadline when, std::function<void(Central&)> task) {
    const MutexLock lock(hostMutex_);
    if (!hostGone_) {
        host_.reactor->startTimer(when, [weak = weak_from_this(), task = std::move(task)] {
            if (const auto self = weak.lock(); self != nullptr) {
                task(*self);
            }
        });
    }
}

void Central::publish(Done done) {
    {
        const MutexLock lock(mutex_);
        if (!ended_) {
            wanted_ = true;
            superseded_ = false;
            dirty_ = true;
            anew_ = true;  // whoever asks for it may mend what others did
            if (done) {
                waitForFlush_.push_back(std::move(done));
            }
            done = nullptr;
        }
    }
    if (done) {
        return done(Status::canceled("the agent has ended"));
    }
    inPool([](Central& self) { self.flush(); });
}

void Central::metadataChanged() {
    const MutexLock lock(mutex_);
    dirty_ = true;
    if (!wanted_ || superseded_ || planned_ || putting_ || ended_) {
        return;
    }
    planned_ = true;
    at(Clock::now() + kGather, [](Central& self) {
        self.inPool([](Central& inside) {
            {
                const MutexLock inner(inside.mutex_);
                inside.planned_ = false;
            }
            inside.flush();
        });
    });
}

// One at a time: what changes meanwhile goes with the next.
void Central::flush() {
    uint64_t since = 0;
    {
        const MutexLock lock(mutex_);
        if (!wanted_ || !dirty_ || putting_ || superseded_ || ended_) {
            return;
        }
        putting_ = true;
        dirty_ = false;
        flushing_.swap(waitForFlush_);
        const bool few = changeKeys_.size() < kMaxChanges && changeBytes_ * 2 < wholeBytes_ + 4096;
        since = directory_->follows() && few && !anew_ ? published_ : 0;
        anew_ = false;
    }
    Result<Snapshot> made = host_.agent->snapshot(since);
    if (!made.ok()) {
        return flushed({}, {}, made.status());
    }
    const Snapshot& snapshot = made.value();
    if (since != 0 && snapshot.version == since) {
        return flushed({nullptr, since}, {}, {});
    }
    // A difference is asked for, the whole may be what there is.
    bool change = false;
    if (since != 0) {
        const Result<metadata::Blob> blob = metadata::decodeBlob(*snapshot.blob);
        change = blob.ok() && blob.value().partial;
    }
    const std::string& name = host_.agent->self().name;
    const std::string key =
        keyOf(name, change ? changeLabel(host_.agent->self(), snapshot.version) : "metadata");
    {
        const MutexLock lock(mutex_);
        if (!wanted_ || ended_) {
            putting_ = false;
            return;
        }
        ++(change ? changes_ : wholes_);
        bytes_ += snapshot.blob->size();
        if (!change && keys_.insert(keyOf(name, "")).second) {
            // The established package has an empty entry beside.
            store_->put(keyOf(name, ""), "", MetadataStore::Lifetime::OWNER, [](const Status&) {});
        }
        (change ? changeKeys_ : keys_).insert(key);
    }
    store_->put(key, *snapshot.blob, MetadataStore::Lifetime::OWNER,
                [weak = weak_from_this(), snapshot,
                 key = change ? key : std::string()](const Status& status) {
                    if (const auto self = weak.lock(); self != nullptr) {
                        self->flushed(snapshot, key, status);
                    }
                });
}

void Central::flushed(const Snapshot& snapshot,
                      const std::string& change_key,
                      const Status& status) {
    std::vector<Done> waiting;
    bool more = false;
    bool whole = false;
    bool tell = false;
    {
        const MutexLock lock(mutex_);
        putting_ = false;
        whole = status.ok() && change_key.empty() && snapshot.blob != nullptr;
        if (status.ok()) {
            published_ = snapshot.version;
            told_.clear();
            if (whole) {
                wholeBytes_ = snapshot.blob->size();
            } else if (snapshot.blob != nullptr) {
                changeBytes_ += snapshot.blob->size();
            }
        } else {
            published_ = 0;
            dirty_ = true;
            tell = told_ != status.message() && !ended_;
            told_ = status.message();
        }
        waiting.swap(flushing_);
        more = dirty_ && status.ok();
    }
    if (whole) {
        forgetChanges();
    }
    if (tell) {
        base::log(LogLevel::WARN, "agent \"" + host_.agent->self().name +
                                      "\" cannot publish its metadata: " + status.message() +
                                      "; it goes on trying");
    }
    for (const Done& done : waiting) {
        done(status);
    }
    if (more) {
        inPool([](Central& self) { self.flush(); });
    } else if (!status.ok() && status.code() != ErrorCode::CANCELED) {
        at(Clock::now() + kRetry,
           [](Central& self) { self.inPool([](Central& inside) { inside.flush(); }); });
    }
}

// The whole that was just published holds them.
void Central::forgetChanges() {
    std::set<std::string> old;
    {
        const MutexLock lock(mutex_);
        old.swap(changeKeys_);
        changeBytes_ = 0;
    }
    for (const std::string& key : old) {
        store_->remove(key, [](const Status&) {});
    }
}

Status Central::publishPart(std::string blob, const std::string& label, Done done) {
    const std::string& name = host_.agent->self().name;
    if (label.empty() || label == "metadata" || label.find('/') != std::string::npos ||
        label.size() > 512) {
        return Status::invalidParam(
            "agent \"" + name + "\": label \"" + label +
            "\" of a part of its metadata: must be 1 to 512 bytes without \"/\", and not "
            "\"metadata\"");
    }
    const std::string key = keyOf(name, label);
    {
        const MutexLock lock(mutex_);
        keys_.insert(key);
        keys_.insert(keyOf(name, ""));
    }
    store_->put(keyOf(name, ""), "", MetadataStore::Lifetime::OWNER, [](const Status&) {});
    store_->put(key, std::move(blob), MetadataStore::Lifetime::OWNER,
                [done = std::move(done)](const Status& status) { done(status); });
    return {};
}

// For a moment the entry says that the agent itself takes it back: else others keep what they
// know of an agent that lives.
void Central::invalidate(const Done& done) {
    std::set<std::string> keys;
    std::vector<Done> waiting;
    {
        const MutexLock lock(mutex_);
        wanted_ = false;
        seenSelf_ = false;
        published_ = 0;
        keys.swap(keys_);
        keys.merge(changeKeys_);
        changeKeys_.clear();
        changeBytes_ = 0;
        waiting.swap(waitForFlush_);
        std::move(flushing_.begin(), flushing_.end(), std::back_inserter(waiting));
        flushing_.clear();
    }
    for (const Done& one : waiting) {
        one(Status::canceled("the metadata was taken back meanwhile"));
    }
    const std::string whole = keyOf(host_.agent->self().name, "metadata");
    if (keys.contains(whole)) {
        store_->put(whole, std::string(Directory::kWithdrawn), MetadataStore::Lifetime::OWNER,
                    [](const Status&) {});
    }
    removeAll(keys, done);
}

void Central::removeAll(const std::set<std::string>& keys, const Done& done) {
    struct Left {
        Mutex mutex;
        size_t count = 0;
        Status first;
    };
    if (keys.empty()) {
        return done ? done({}) : void();
    }
    const auto left = std::make_shared<Left>();
    left->count = keys.size();
    for (const std::string& key : keys) {
        store_->remove(key, [left, done](const Status& status) {
            Status all;
            {
                const MutexLock lock(left->mutex);
                if (left->first.ok()) {
                    left->first = status;
                }
                if (--left->count != 0) {
                    return;
                }
                all = left->first;
            }
            if (done) {
                done(all);
            }
        });
    }
}

void Central::end() {
    std::set<std::string> keys;
    std::set<WaitingPtr> waiting;
    std::vector<Done> flushes;
    bool others = false;
    {
        const MutexLock lock(mutex_);
        if (std::exchange(ended_, true)) {
            return;
        }
        wanted_ = false;
        others = superseded_;
        keys.swap(keys_);
        keys.merge(changeKeys_);
        waiting.swap(waiting_);
        flushes.swap(waitForFlush_);
        std::move(flushing_.begin(), flushing_.end(), std::back_inserter(flushes));
        flushing_.clear();
    }
    {
        const MutexLock lock(hostMutex_);
        hostGone_ = true;
    }
    const Status why = Status::canceled("the agent has ended");
    for (const Done& done : flushes) {
        done(why);
    }
    for (const WaitingPtr& one : waiting) {
        one->done(why);
    }
    if (others) {  // the entry is that of the agent that took the name
        keys.erase(keyOf(host_.agent->self().name, "metadata"));
        keys.erase(keyOf(host_.agent->self().name, ""));
    }
    removeAll(keys, nullptr);
}

void Central::ownEntered(const EntryPtr& now) {
    const peer::Identity& self = host_.agent->self();
    const MutexLock lock(mutex_);
    if (now->who == self) {
        seenSelf_ = true;
        return;
    }
    // What stood there before this agent published is an earlier one of the name.
    if (!wanted_ || !seenSelf_ || superseded_) {
        return;
    }
    superseded_ = true;
    seenSelf_ = false;
    base::log(host_.alive(now->who) ? LogLevel::INFO : LogLevel::WARN,
              "agent \"" + self.name +
                  "\": another agent has published itself under this name in " +
                  store_->describe() +
                  "; others find that one from now on. Names must differ; send_local_metadata() "
                  "takes the name back");
}

// Somebody else's hand, or the end of the agent that had taken the name: this one is there still.
void Central::ownLeft(const EntryPtr& was) {
    {
        const MutexLock lock(mutex_);
        if (!wanted_ || ended_ || (was->who == host_.agent->self() && !seenSelf_)) {
            return;
        }
        superseded_ = false;
        seenSelf_ = false;
        published_ = 0;
        dirty_ = true;
    }
    at(Clock::now() + kRepair,
       [](Central& self) { self.inPool([](Central& inside) { inside.flush(); }); });
}

}  // namespace nixl::exchange
