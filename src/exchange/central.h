// One agent's dealings with a central store: its own metadata there, and the metadata of others.
//
// Publishes the whole once, then each change as a difference, gathered for a moment. Takes others'
// metadata in when the agent first has to do with them, and follows what has been taken in.
// Thread-safe; no call blocks; may be called from the reactor's thread where that is said.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "nixl/services.h"

#include "base/mutex.h"
#include "exchange/directory.h"
#include "exchange/fetches.h"
#include "exchange/local_agent.h"
#include "exchange/store.h"

namespace nixl::exchange {

class Central final : public Directory::Listener, public std::enable_shared_from_this<Central> {
  public:
    using Done = std::function<void(const Status&)>;
    using Deadline = std::chrono::steady_clock::time_point;

    // What it needs of its agent. Reactor and pool must outlive end(), the calls everything.
    struct Host {
        std::shared_ptr<LocalAgent> agent;
        Reactor* reactor = nullptr;
        WorkPool* pool = nullptr;
        // Whether there is a live session with it, or it is of this process.
        std::function<bool(const peer::Identity&)> alive;
        // Agents came or went.
        std::function<void(const std::string& name, bool there)> changed;
    };

    // `space`: the namespace as the user wrote it; empty: the default.
    Central(std::shared_ptr<MetadataStore> store, const std::string& space, Host host);
    ~Central() override = default;
    Central(const Central&) = delete;
    Central& operator=(const Central&) = delete;

    void start();
    // Takes everything of this agent back, without waiting for it. Nothing is called afterwards
    // but `done` of what was under way.
    void end();

    // Publishes, and from here on every change. `done` when the store has it.
    void publish(Done done);
    // INVALID_PARAM for a bad label; then `done` is not called.
    Status publishPart(std::string blob, const std::string& label, Done done);
    void invalidate(const Done& done);
    // This agent's metadata has changed. Also from the reactor's thread.
    void metadataChanged();

    // Waits until the agent (or its part `label`) is there and takes it in.
    void fetch(const std::string& name, const std::string& label, Deadline deadline, Done done);
    // Takes in what the store says of this agent, if that is news.
    void learn(const std::string& name);
    // The application has removed this agent: what the store says of it now counts no longer, until
    // it restarts, or is fetched or added again.
    void forget(const std::string& name);
    void remember(const std::string& name);
    // What is known of the agent does not suffice: asks a store that cannot be watched again.
    void refresh(const std::string& name);
    // The agents that the store names, without this one. Any thread.
    std::vector<std::string> names() const;
    bool has(const std::string& name) const;
    // What the directory says, unless it was forgotten.
    EntryPtr entryOf(const std::string& name) const;
    std::string describe() const;  // the store, the namespace, and what is wrong with it
    std::map<std::string, uint64_t> stats() const;

    // Directory::Listener
    void entered(const EntryPtr& now, const EntryPtr& before) override;
    void left(const EntryPtr& was, bool withdrawn) override;
    void synced() override;

    static constexpr const char* kDefaultSpace = "/nixl/agents/";

  private:
    struct Waiting {
        std::string name;
        std::string label;
        Deadline deadline;
        Done done;
        uint64_t timer = 0;
    };
    using WaitingPtr = std::shared_ptr<Waiting>;

    std::string keyOf(const std::string& name, const std::string& label) const;
    void inPool(std::function<void(Central&)> task);
    void at(Deadline when, std::function<void(Central&)> task);
    void flush();
    void flushed(const Snapshot& snapshot, const std::string& change_key, const Status& status);
    void forgetChanges();
    void removeAll(const std::set<std::string>& keys, const Done& done);
    Status takeEntry(const DirectoryEntry& entry);
    Status takeValue(const std::string& name, const StoreEntry& entry);
    void tryFetch(const WaitingPtr& waiting);
    void fetchedByKey(const WaitingPtr& waiting,
                      size_t form,
                      Result<std::optional<StoreEntry>> entry);
    void tryAgain(const WaitingPtr& waiting, const Status& why);
    void endFetch(const WaitingPtr& waiting, const Status& status);
    void ownEntered(const EntryPtr& now);
    void ownLeft(const EntryPtr& was);

    const std::shared_ptr<MetadataStore> store_;
    const std::string written_;  // keys of this agent begin so
    const std::string root_;     // everybody's keys begin so
    const Host host_;
    const std::shared_ptr<Directory> directory_;

    Mutex hostMutex_;
    bool hostGone_ NIXL_GUARDED_BY(hostMutex_) = false;

    mutable Mutex mutex_;
    bool ended_ NIXL_GUARDED_BY(mutex_) = false;
    // Of this agent's own metadata.
    bool wanted_ NIXL_GUARDED_BY(mutex_) = false;
    bool dirty_ NIXL_GUARDED_BY(mutex_) = false;
    bool planned_ NIXL_GUARDED_BY(mutex_) = false;  // a flush is
    bool putting_ NIXL_GUARDED_BY(mutex_) = false;
    bool superseded_ NIXL_GUARDED_BY(mutex_) = false;
    bool seenSelf_ NIXL_GUARDED_BY(mutex_) = false;
    uint64_t published_ NIXL_GUARDED_BY(mutex_) = 0;  // the version the store has; 0: none
    size_t wholeBytes_ NIXL_GUARDED_BY(mutex_) = 0;
    size_t changeBytes_ NIXL_GUARDED_BY(mutex_) = 0;
    std::set<std::string> changeKeys_ NIXL_GUARDED_BY(mutex_);
    std::set<std::string> keys_ NIXL_GUARDED_BY(mutex_);  // all of this agent but changes
    bool anew_ NIXL_GUARDED_BY(mutex_) = false;           // the whole is asked for
    std::vector<Done> waitForFlush_ NIXL_GUARDED_BY(mutex_);
    std::vector<Done> flushing_ NIXL_GUARDED_BY(mutex_);  // wait for the one under way
    std::string told_ NIXL_GUARDED_BY(mutex_);            // the failure that was logged last
    // Of others.
    std::set<WaitingPtr> waiting_ NIXL_GUARDED_BY(mutex_);
    std::map<std::string, peer::Identity> learnt_ NIXL_GUARDED_BY(mutex_);
    std::map<std::string, peer::Identity> forgotten_ NIXL_GUARDED_BY(mutex_);
    // Figures.
    uint64_t wholes_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t changes_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t bytes_ NIXL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nixl::exchange
