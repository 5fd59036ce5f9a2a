// What the exchange's connections share: where they run, the agent they speak for, who may say what
// about whom, and how much room there is. Owned by all of them; calls as each part says.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "nixl/services.h"

#include "base/mutex.h"
#include "exchange/local_agent.h"

namespace nixl::exchange_tcp {

// Who tells something about an agent: a connection on which `who` is at the other end.
struct Speaker {
    peer::Identity who;
    uint64_t connection = 0;
    bool proven = false;  // holds the authentication key
    bool asked = false;   // this side called it, so the application wants to know
};

// Which connection an agent's metadata came over, so that an unknown peer can neither overwrite nor
// evict it. Thread-safe; waits for the agent, so never on the reactor's thread but where it says
// so.
class Owners {
  public:
    explicit Owners(exchange::LocalAgent& agent) : agent_(agent) {}

    using Taken = exchange::LocalAgent::Taken;
    // Metadata that was asked for, or that somebody hands over. `stale` is set where the connection
    // it came over before should be asked for what is new: its number.
    Result<Taken> take(const Speaker& speaker, std::string_view blob, uint64_t& stale);
    // What has changed. NOT_FOUND: its agent is not known any more.
    Result<Taken> update(const Speaker& speaker, std::string_view blob);
    // The speaker wants to be forgotten.
    Status drop(const Speaker& speaker);

    // From any thread: the connection has ended; the application has added or removed the agent.
    void ended(uint64_t connection);
    void forget(const std::string& name);
    // Whether metadata of an agent that is still known came over it. From any thread.
    bool owns(uint64_t connection) const;

  private:
    struct Owner {
        peer::Identity who;
        uint64_t connection = 0;  // 0: has ended
        bool asked = false;
    };
    // Empty where the application added what is known.
    std::optional<Owner> ownerOf(const exchange::Known& known) const;
    void set(const Speaker& speaker);

    exchange::LocalAgent& agent_;
    Mutex taking_;  // one at a time, so that what was looked at still holds
    mutable Mutex mutex_;
    std::map<std::string, Owner> owners_ NIXL_GUARDED_BY(mutex_);
    std::map<uint64_t, size_t> owned_ NIXL_GUARDED_BY(mutex_);  // agents by connection
};

// How much may be held for others: connections of this process, and bytes of large messages that
// are still coming. Thread-safe.
class ExchangeBudget {
  public:
    // Connections all agents of this process may keep without having anything to say.
    static size_t idleConnections();
    static size_t connections();
    static void enter();
    static void leave();

    static constexpr size_t kLargeMessage = 64 << 10;  // from here on bytes are counted
    bool reserve(size_t bytes);
    void release(size_t bytes) { bytes_.fetch_sub(bytes); }
    static constexpr size_t kMaxBytes = 256 << 20;

  private:
    std::atomic<size_t> bytes_{0};
};

// The reactor, for threads that may outlive it. Thread-safe.
class ReactorGate {
  public:
    explicit ReactorGate(Reactor& reactor) : reactor_(&reactor) {}
    bool open() const {
        const MutexLock lock(mutex_);
        return reactor_ != nullptr;
    }
    void run(std::function<void()> task) {
        const MutexLock lock(mutex_);
        if (reactor_ != nullptr) {
            reactor_->run(std::move(task));
        }
    }
    void close() {
        const MutexLock lock(mutex_);
        reactor_ = nullptr;
    }

  private:
    mutable Mutex mutex_;
    Reactor* reactor_ NIXL_GUARDED_BY(mutex_);
};

struct Core {
    Core(Reactor& its_reactor, WorkPool& its_pool, std::shared_ptr<exchange::LocalAgent> its_agent)
        : reactor(its_reactor), pool(its_pool), agent(std::move(its_agent)), owners(*agent) {}

    Reactor& reactor;
    WorkPool& pool;
    const std::shared_ptr<exchange::LocalAgent> agent;
    Owners owners;
    ExchangeBudget budget;
    const std::shared_ptr<ReactorGate> gate = std::make_shared<ReactorGate>(reactor);
    // Asks on the connection of this number for what is new. Reactor thread only.
    std::function<void(uint64_t)> askAgain;
    std::atomic<uint64_t> served{0};       // fetches of others
    std::atomic<uint64_t> updatesSent{0};  // differences, to those who follow
    std::atomic<uint64_t> updatesTaken{0};
    std::atomic<uint64_t> bytesIn{0};
    std::atomic<uint64_t> bytesOut{0};
};

}  // namespace nixl::exchange_tcp
