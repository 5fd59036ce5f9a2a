// Calls of a store that wait, and a watch that keeps what it was told: for tests.
#pragma once

#include <chrono>
#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "exchange/store.h"
#include "exchange_etcd/etcd_store.h"

namespace nixl::exchange_etcd {

using Texts = std::map<std::string, std::string>;
using exchange::MetadataStore;
using exchange::StoreEntry;
using exchange::StoreEvent;
using StorePtr = std::shared_ptr<MetadataStore>;

inline StorePtr openStore(const std::string& endpoints, Texts settings = {}) {
    settings["endpoints"] = endpoints;
    settings.try_emplace("timeout", "20");
    Result<StorePtr> made = openEtcd(settings);
    return made.ok() ? made.value() : nullptr;
}

inline Status putNow(MetadataStore& store,
                     const std::string& key,
                     std::string value,
                     MetadataStore::Lifetime lifetime = MetadataStore::Lifetime::OWNER) {
    std::promise<Status> done;
    store.put(key, std::move(value), lifetime,
              [&](Status status) { done.set_value(std::move(status)); });
    return done.get_future().get();
}

inline Result<std::optional<StoreEntry>> getNow(MetadataStore& store, const std::string& key) {
    std::promise<Result<std::optional<StoreEntry>>> done;
    store.get(key,
              [&](Result<std::optional<StoreEntry>> entry) { done.set_value(std::move(entry)); });
    return done.get_future().get();
}

// The value; "(none)", or the error.
inline std::string valueNow(MetadataStore& store, const std::string& key) {
    const auto entry = getNow(store, key);
    return !entry.ok() ? entry.status().message() : entry.value() ? entry.value()->value : "(none)";
}

inline Result<std::vector<StoreEntry>> listNow(MetadataStore& store, const std::string& prefix) {
    std::promise<Result<std::vector<StoreEntry>>> done;
    store.list(prefix,
               [&](Result<std::vector<StoreEntry>> all) { done.set_value(std::move(all)); });
    return done.get_future().get();
}

inline Status removeNow(MetadataStore& store, const std::string& key) {
    std::promise<Status> done;
    store.remove(key, [&](Status status) { done.set_value(std::move(status)); });
    return done.get_future().get();
}

class WatchLog {
  public:
    WatchLog(MetadataStore& store, const std::string& prefix)
        : watch_(store.watch(prefix, [this](const StoreEvent& event) { take(event); })) {}
    ~WatchLog() { watch_.reset(); }
    WatchLog(const WatchLog&) = delete;
    WatchLog& operator=(const WatchLog&) = delete;

    // Waits until the log holds this word: "+KEY=VALUE" "-KEY" "synced" "reset" "failed: WHY".
    bool has(const std::string& word) {
        std::unique_lock<std::mutex> lock(mutex_);
        return changed_.wait_for(lock, std::chrono::seconds(60), [&] {
            return std::any_of(words_.begin(), words_.end(), [&](const std::string& one) {
                return one.find(word) != std::string::npos;
            });
        });
    }
    std::vector<std::string> words() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return words_;
    }
    void clear() {
        const std::lock_guard<std::mutex> lock(mutex_);
        words_.clear();
    }

  private:
    void take(const StoreEvent& event) {
        const std::lock_guard<std::mutex> lock(mutex_);
        switch (event.kind) {
            case StoreEvent::Kind::PUT:
                words_.push_back("+" + event.entry.key + "=" + event.entry.value.substr(0, 64));
                break;
            case StoreEvent::Kind::REMOVED:
                words_.push_back("-" + event.entry.key);
                break;
            case StoreEvent::Kind::SYNCED:
                words_.emplace_back("synced");
                break;
            case StoreEvent::Kind::RESET:
                words_.emplace_back("reset");
                break;
            case StoreEvent::Kind::FAILED:
                words_.push_back("failed: " + event.status.message());
                break;
        }
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::string> words_;
    std::unique_ptr<exchange::StoreWatch> watch_;
};

}  // namespace nixl::exchange_etcd
