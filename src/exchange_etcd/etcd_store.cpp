// See etcd_store.h.
#include "exchange_etcd/etcd_store.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "base/fork.h"
#include "base/log.h"
#include "exchange_etcd/client.h"
#include "exchange_etcd/owned.h"
#include "exchange_etcd/values.h"
#include "exchange_etcd/watching.h"

namespace nixl::exchange_etcd {
namespace {

using base::log;
using exchange::MetadataStore;
using exchange::StoreEntry;
using exchange::StoreEvent;
using exchange::StoreWatch;
using std::chrono::milliseconds;

constexpr milliseconds kFarewell{300};
constexpr milliseconds kRetry{1000};  // of a heartbeat that failed

// Something that one thread waits for and another ends.
class Latch {
  public:
    void open() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            open_ = true;
        }
        opened_.notify_all();
    }
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        opened_.wait(lock, [this] { return open_; });
    }
    void waitFor(milliseconds limit) {
        std::unique_lock<std::mutex> lock(mutex_);
        opened_.wait_for(lock, limit, [this] { return open_; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable opened_;
    bool open_ = false;
};

class EtcdStore final : public MetadataStore, public std::enable_shared_from_this<EtcdStore> {
  public:
    EtcdStore(std::unique_ptr<HttpLoop> loop, Settings settings)
        : name_("etcd at " + settings.endpoints.front() +
                (settings.endpoints.size() > 1
                     ? " and " + std::to_string(settings.endpoints.size() - 1) + " more"
                     : "")),
          settings_(std::move(settings)),
          loop_(std::move(loop)),
          client_(std::make_unique<Client>(*loop_, settings_)),
          values_(*client_),
          owned_(*client_, values_, [this](const std::string& key, Step step) {
              inOrder(key, std::move(step));
          }) {
        client_->onMoved([this] { reconnectAll(); });
    }
    ~EtcdStore() override;
    EtcdStore(const EtcdStore&) = delete;
    EtcdStore& operator=(const EtcdStore&) = delete;

    const Settings& settings() const { return settings_; }
    bool forked() const { return loop_->forked(); }
    HttpLoop& loop() { return *loop_; }

    std::string describe() const override { return name_; }
    void put(std::string key,
             std::string value,
             Lifetime lifetime,
             std::function<void(Status)> done) override;
    void get(std::string key, std::function<void(Result<std::optional<StoreEntry>>)> done) override;
    void list(std::string prefix,
              std::function<void(Result<std::vector<StoreEntry>>)> done) override;
    void remove(std::string key, std::function<void(Status)> done) override;
    std::unique_ptr<StoreWatch> watch(std::string prefix,
                                      std::function<void(StoreEvent)> event) override;

    // On the loop's thread.
    void unwatch(uint64_t id);

  private:
    using Step = Owned::Step;

    Status ended() const { return Status::canceled(name_ + ": this client has ended"); }
    void inOrder(const std::string& key, Step step);
    void next(const std::string& key);
    void beat();
    void beaten(const Status& status);
    void planBeat(milliseconds pause);
    void reconnectAll();

    const std::string name_;
    const Settings settings_;
    std::unique_ptr<HttpLoop> loop_;
    // Of the loop's thread.
    std::unique_ptr<Client> client_;
    Values values_;
    Owned owned_;
    std::map<uint64_t, std::shared_ptr<Watching>> watches_;
    std::map<std::string, std::deque<Step>> waiting_;  // by key, the first one runs
    uint64_t nextWatch_ = 1;
    uint64_t beatTimer_ = 0;
    bool away_ = false;
};

class EtcdWatch final : public StoreWatch {
  public:
    EtcdWatch(std::weak_ptr<EtcdStore> store, uint64_t id) : store_(std::move(store)), id_(id) {}
    ~EtcdWatch() override;
    EtcdWatch(const EtcdWatch&) = delete;
    EtcdWatch& operator=(const EtcdWatch&) = delete;

  private:
    const std::weak_ptr<EtcdStore> store_;
    const uint64_t id_;
};

EtcdWatch::~EtcdWatch() {
    const std::shared_ptr<EtcdStore> store = store_.lock();
    if (store == nullptr || store->forked()) {
        return;
    }
    if (store->loop().onThread()) {
        store->unwatch(id_);
        return;
    }
    const auto gone = std::make_shared<Latch>();
    if (store->loop().run([raw = store.get(), id = id_, gone] {
            raw->unwatch(id);
            gone->open();
        })) {
        gone->wait();
    }
}

EtcdStore::~EtcdStore() {
    if (forked()) {
        // All of it is the parent's; what it has allocated stays.
        [[maybe_unused]] const HttpLoop* const loop = loop_.release();
        [[maybe_unused]] const Client* const client = client_.release();
        new (std::nothrow) std::map<uint64_t, std::shared_ptr<Watching>>(std::move(watches_));
        return;
    }
    const auto left = std::make_shared<Latch>();
    loop_->run([this, left] {
        if (away_) {
            left->open();
        } else {
            owned_.revoke([left](const Status&) { left->open(); });
        }
    });
    left->waitFor(kFarewell);
    const auto done = std::make_shared<Latch>();
    loop_->run([this, done] {
        watches_.clear();
        client_->endAll(ended());
        done->open();
    });
    done->wait();
    loop_.reset();
}

// Calls about one key go one after the other: connections would let them overtake each other.
void EtcdStore::inOrder(const std::string& key, Step step) {
    std::deque<Step>& steps = waiting_[key];
    steps.push_back(std::move(step));
    if (steps.size() == 1) {
        const Step first = steps.front();
        first([this, key] { next(key); });
    }
}

void EtcdStore::next(const std::string& key) {
    const auto found = waiting_.find(key);
    if (found == waiting_.end()) {
        return;
    }
    found->second.pop_front();
    if (found->second.empty()) {
        waiting_.erase(found);
        return;
    }
    const Step step = found->second.front();
    step([this, key] { next(key); });
}

void EtcdStore::put(std::string key,
                    std::string value,
                    Lifetime lifetime,
                    std::function<void(Status)> done) {
    auto shared = std::make_shared<const std::string>(std::move(value));
    const bool ran = loop_->run([this, key = std::move(key), shared, lifetime, done] {
        inOrder(key, [this, key, shared, lifetime, done](const std::function<void()>& next) {
            const auto ended = [this, done, next](const Status& status) {
                if (beatTimer_ == 0) {
                    planBeat(settings_.leaseTime / 3);
                }
                done(status);
                next();
            };
            if (lifetime == Lifetime::OWNER) {
                owned_.put(key, shared, ended);
            } else {
                values_.put({key, shared}, ended);
            }
        });
    });
    if (!ran) {
        done(ended());
    }
}

void EtcdStore::get(std::string key, std::function<void(Result<std::optional<StoreEntry>>)> done) {
    if (!loop_->run([this, key = std::move(key), done] { values_.get(key, done); })) {
        done(ended());
    }
}

void EtcdStore::list(std::string prefix,
                     std::function<void(Result<std::vector<StoreEntry>>)> done) {
    const bool ran = loop_->run([this, prefix = std::move(prefix), done] {
        values_.list(prefix, [done](Result<Values::Listing> listing) {
            if (!listing.ok()) {
                return done(listing.status());
            }
            Assembler assembler;
            done(Values::assemble(std::move(listing).value(), assembler));
        });
    });
    if (!ran) {
        done(ended());
    }
}

void EtcdStore::remove(std::string key, std::function<void(Status)> done) {
    const bool ran = loop_->run([this, key = std::move(key), done] {
        inOrder(key, [this, key, done](const std::function<void()>& next) {
            const auto ended = [done, next](const Status& status) {
                done(status);
                next();
            };
            if (owned_.owns(key)) {
                owned_.remove(key, ended);
            } else {
                values_.remove(key, 0, ended);
            }
        });
    });
    if (!ran) {
        done(ended());
    }
}

std::unique_ptr<StoreWatch> EtcdStore::watch(std::string prefix,
                                             std::function<void(StoreEvent)> event) {
    const auto made = std::make_shared<Latch>();
    const auto id = std::make_shared<uint64_t>(0);
    const auto begin = [this, prefix = std::move(prefix), event = std::move(event), made, id] {
        *id = nextWatch_++;
        const auto watch = std::make_shared<Watching>(*client_, values_, prefix, event);
        watches_[*id] = watch;
        made->open();
        watch->start();
        if (beatTimer_ == 0) {
            planBeat(settings_.leaseTime / 3);
        }
    };
    if (loop_->onThread()) {
        begin();
    } else if (loop_->run(begin)) {
        made->wait();
    }
    return std::make_unique<EtcdWatch>(weak_from_this(), *id);
}

void EtcdStore::unwatch(uint64_t id) {
    if (const auto found = watches_.find(id); found != watches_.end()) {
        const std::shared_ptr<Watching> watch = std::move(found->second);
        watches_.erase(found);
        watch->end();
        // It may be what is calling.
        loop_->startTimer(HttpLoop::Clock::now(), [watch] {});
    }
}

void EtcdStore::planBeat(milliseconds pause) {
    beatTimer_ = loop_->startTimer(HttpLoop::Clock::now() + pause, [this] { beat(); });
}

// Keeps the lease, and finds a server that no longer answers: a watch alone would not.
void EtcdStore::beat() {
    const auto ended = [this](const Status& status) { beaten(status); };
    if (owned_.leased() || watches_.empty()) {
        return owned_.keepAlive(ended);
    }
    const std::string& prefix = watches_.begin()->second->prefix();
    client_->call("/v3/kv/range",
                  Json{{"key", toBase64(prefix)}, {"limit", "1"}, {"keys_only", true}},
                  [this](const Result<Json>& answer) {
                      const Status status = answer.ok() ? Status() : answer.status();
                      // One that refuses is there.
                      const bool there = status.code() == ErrorCode::NOT_ALLOWED;
                      owned_.keepAlive([](const Status&) {});
                      beaten(there ? Status() : status);
                  });
}

void EtcdStore::beaten(const Status& status) {
    planBeat(status.ok() ? milliseconds(settings_.leaseTime) / 3 : kRetry);
    if (status.ok() == !away_) {
        return;
    }
    away_ = !status.ok();
    if (away_) {
        log(LogLevel::WARN,
            status.message() + "; agents go on with what they know, and it is tried again");
    } else {
        log(LogLevel::INFO, client_->describe() + " is reached again");
    }
}

void EtcdStore::reconnectAll() {
    std::vector<uint64_t> ids;
    for (const auto& [id, watch] : watches_) {
        ids.push_back(id);
    }
    for (const uint64_t id : ids) {
        if (const auto found = watches_.find(id); found != watches_.end()) {
            found->second->reconnect();
        }
    }
}

// Lets go on another thread where the last owner does so in a callback.
void endStore(EtcdStore* store) {
    if (store->forked() || !store->loop().onThread()) {
        delete store;
        return;
    }
    Result<std::thread> thread =
        base::startThread("nixl-etcd-end", base::Priority::NORMAL, [store] { delete store; });
    if (thread.ok()) {
        thread.value().detach();
    }
}

// The store of this process with these settings; else `fresh`, which is entered.
std::shared_ptr<EtcdStore> enterStore(const Settings& settings,
                                      const std::shared_ptr<EtcdStore>& fresh,
                                      std::vector<std::shared_ptr<EtcdStore>>& seen) {
    static constinit std::vector<std::weak_ptr<EtcdStore>>* open = nullptr;
    const MutexLock lock(base::processMutex(base::ProcessLock::STORES));
    if (open == nullptr) {
        open = new std::vector<std::weak_ptr<EtcdStore>>();
    }
    std::erase_if(*open, [](const auto& one) { return one.expired(); });
    for (const std::weak_ptr<EtcdStore>& one : *open) {
        std::shared_ptr<EtcdStore> store = one.lock();
        if (store == nullptr) {
            continue;
        }
        seen.push_back(store);
        if (!store->forked() && store->settings() == settings) {
            return store;
        }
    }
    if (fresh != nullptr) {
        open->push_back(fresh);
    }
    return fresh;
}

}  // namespace

Result<std::shared_ptr<MetadataStore>> openEtcd(
    const std::map<std::string, std::string>& settings) {
    Result<Settings> read = readSettings(settings);
    if (!read.ok()) {
        return read.status();
    }
    std::vector<std::shared_ptr<EtcdStore>> seen;  // let go of without the lock
    if (std::shared_ptr<EtcdStore> known = enterStore(read.value(), nullptr, seen)) {
        return std::shared_ptr<MetadataStore>(std::move(known));
    }
    const Settings& wanted = read.value();
    Result<std::unique_ptr<HttpLoop>> loop =
        HttpLoop::create({wanted.ca, wanted.certificate, wanted.key});
    if (!loop.ok()) {
        return loop.status();
    }
    const std::shared_ptr<EtcdStore> fresh(new EtcdStore(std::move(loop).value(), wanted),
                                           endStore);
    return std::shared_ptr<MetadataStore>(enterStore(wanted, fresh, seen));
}

}  // namespace nixl::exchange_etcd
