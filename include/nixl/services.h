// What the core hands to a plugin: log, reactor, copy pool, counters. Owned by the agent; valid
// until the backend is destroyed. All calls are thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "nixl/backend.h"
#include "nixl/device.h"
#include "nixl/error.h"

namespace nixl {

enum class LogLevel : uint8_t { TRACE, DEBUG, INFO, WARN, ERROR, FATAL };

// One thread (epoll, timers) per agent that sleeps when nothing moves. Callbacks run on it: they
// must not block nor copy payload.
class NIXL_API Reactor {
  public:
    using Clock = std::chrono::steady_clock;
    virtual ~Reactor() = default;
    // Calls back with the epoll events while `fd` has any of `events` (level-triggered). The fd
    // stays the caller's. The id is never 0.
    virtual Result<uint64_t> watch(int fd, uint32_t events, std::function<void(uint32_t)> call) = 0;
    virtual Status modify(uint64_t watch_id, uint32_t events) = 0;
    // After it returns the callback does not run any more (called on the reactor thread itself it
    // may be inside the callback).
    virtual void unwatch(uint64_t watch_id) = 0;
    // Calls back once at `when`. The id is never 0.
    virtual uint64_t startTimer(Clock::time_point when, std::function<void()> call) = 0;
    virtual void stopTimer(uint64_t timer_id) = 0;     // as unwatch
    virtual void run(std::function<void()> task) = 0;  // soon, on the reactor thread, in order
    virtual bool onThread() const = 0;
};

// A few threads for copies and other work that may take long; started when first used.
class NIXL_API WorkPool {
  public:
    virtual ~WorkPool() = default;
    virtual unsigned threads() const = 0;
    virtual void run(std::function<void()> task) = 0;
};

// Something with a descriptor that callers who poll (checking, waiting, taking notifications) look
// after themselves, so that no thread is woken for what is small.
class NIXL_API PolledWork {
  public:
    virtual ~PolledWork() = default;
    // The descriptor is ready. Never blocks: where another thread is at it, nothing is done.
    virtual void pollReady() = 0;
    // Nobody polls any more: what was left to callers is watched by threads again.
    virtual void resumeReads() = 0;
};

// The callers of this agent who poll.
class NIXL_API Pollers {
  public:
    virtual ~Pollers() = default;
    // 0 where it cannot be looked after (no descriptor is left): then it must not be left to
    // callers. The fd stays the caller's.
    virtual uint64_t add(int fd, std::weak_ptr<PolledWork> work) = 0;
    virtual void remove(uint64_t id, int fd) = 0;  // before the fd is closed; 0 is fine
    // A caller polls (BackendTransfer::help): serves what is ready of all works.
    virtual void progress() = 0;
    // A caller polls, and has moved its own work on since `begin`.
    virtual void progressed(std::chrono::steady_clock::time_point begin) = 0;
    // Somebody polls again and again, and has a moment ago: work may be left to callers.
    virtual bool polled() const = 0;
    // Something has been left to callers; `resumeReads` is called soon after the last poll.
    virtual void guard() = 0;
};

struct LaneBackendSpec;

class NIXL_API PluginServices {
  public:
    virtual ~PluginServices() = default;
    virtual void log(LogLevel level, std::string_view message) = 0;
    virtual bool logs(LogLevel level) const = 0;
    virtual Reactor& reactor() = 0;
    virtual WorkPool& copyPool() = 0;
    // GPU memory; the same object for all, also where there is no GPU.
    virtual Devices& devices() = 0;
    // Adds to the counter `name` of this backend (agent.stats()).
    virtual void count(std::string_view name, uint64_t amount) = 0;
    virtual std::string_view agentName() const = 0;
    virtual bool progressThreadWanted() const = 0;
    // Hands a notification that arrived for this agent to its queue.
    virtual void deliverNotification(std::string_view from, std::string message) = 0;
    // Sends a notification to a peer over the agent's session; `done` is called once, with OK when
    // the peer has queued it.
    virtual void notifyPeer(const PlanPeer& peer,
                            std::string message,
                            std::function<void(Status)> done) = 0;
    // Opens the agent's session with a peer where there is none yet; `done` is called once, from
    // any thread, with OK when it is up or the reason why it cannot be. A session that ends later
    // is told to RemoteSupport::peerLost.
    virtual void connectPeer(const PlanPeer& peer, std::function<void(Status)> done) = 0;
    // For network backends: a backend over the agent's sessions with the project's own lanes and
    // the plugin's.
    virtual Result<std::unique_ptr<Backend>> createLaneBackend(LaneBackendSpec spec) = 0;
    // For lanes: null where there are none (before Lane::start, in tests without an agent).
    // Whoever keeps it may use it after the agent's sessions have ended; nobody polls then.
    virtual std::shared_ptr<Pollers> pollers() { return nullptr; }
    // For lanes that have something to agree on: messages to the lane `lane` of a peer, over the
    // agent's session, in order, at most 1 MiB. `done` is called once, as that of notifyPeer.
    // Whoever listens is called by any thread and must not block; an empty function ends it, though
    // a call may still be under way. What nobody listens to is dropped.
    virtual void sendLaneMessage(const PlanPeer& /*peer*/,
                                 std::string_view /*lane*/,
                                 std::string_view /*message*/,
                                 const std::function<void(Status)>& done) {
        done(Status::notSupported("lanes cannot send messages here"));
    }
    using LaneListener = std::function<void(const PlanPeer& from, std::string_view message)>;
    virtual void listenToLane(std::string_view /*lane*/, const LaneListener& /*call*/) {}
};

}  // namespace nixl
