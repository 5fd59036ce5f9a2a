// What of an agent others hold on to: its regions, its notification queue, its signal. Shared by
// the agent, its posted transfers and those who reach it; outlives the agent, and then answers
// with REMOTE_DISCONNECT. All calls are thread-safe.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/agent.h"
#include "nixl/services.h"

#include "agent/signal.h"
#include "base/busy_poll.h"
#include "base/mutex.h"
#include "memory/region_table.h"
#include "session/target_access.h"
#include "telemetry/series.h"

namespace nixl::agent {

// Bytes of notifications from agents of this process that may wait; more is refused. Sessions of
// other processes have their own credits (docs/protocol.md).
inline constexpr uint64_t kMaxQueuedBytes = 64 << 20;

// Messages of lanes travel as notifications that begin so, with the lane's name and a NUL.
inline constexpr std::string_view kLaneMark("\0nixl-lane\xb7\x1d\x52\x9e\0", 15);
std::string markedForLane(std::string_view lane, std::string_view message);

class AgentShared final : public peer::TargetAccess, public peer::NetworkAccess {
  public:
    AgentShared(peer::Identity identity, peer::Key grant, std::chrono::microseconds busy_poll = {});

    const peer::Identity& self() const noexcept { return self_; }
    const peer::Key& grant() const noexcept { return grant_; }
    memory::RegionTable& regions() noexcept { return regions_; }
    Signal& signal() noexcept { return signal_; }
    telemetry::SeriesTable& series() noexcept { return series_; }

    // peer::TargetAccess
    const std::string& agentName() const override { return self_.name; }
    Result<peer::RegionPin> pin(uint64_t region_id, uint32_t generation) override;
    Status deliverLocal(const peer::Identity& from, std::string message) override;

    // peer::NetworkAccess
    std::optional<peer::Key> grantKey(peer::GrantId grant) override;
    Result<memory::RegionPtr> region(peer::GrantId grant,
                                     uint64_t id,
                                     uint32_t generation,
                                     OpType op) override;
    void deliver(const peer::Identity& from,
                 std::string message,
                 std::shared_ptr<void> credit) override;

    void peerLost(const peer::Identity& peer, const Status& why) override {
        if (!closed() && onPeerLost) {
            onPeerLost(peer, why);
        }
    }

    // The grant that opens just these regions, for a partial blob: the same for the same regions.
    peer::Key partialGrant(std::vector<uint64_t> regions);

    // Messages of lanes never reach the notifications. Empty: nobody listens any more.
    void listenToLane(std::string_view lane, PluginServices::LaneListener call);

    std::vector<Notification> takeNotifications();
    bool hasNotifications() const;
    // Who sent us something last under this name. Of senders that are gone some are forgotten.
    std::optional<peer::Identity> lastSender(const std::string& name) const;
    // For those who take notifications: forgets senders where there are many, but none of those
    // that are `alive`.
    void forgetSenders(const std::function<bool(const peer::Identity&)>& alive);
    static constexpr size_t kManySenders = 4096;
    size_t senders() const;

    // A notification of this agent to `peer` will never arrive. True: nothing has been told since
    // the last reportUndelivered(), so that one must be called.
    bool addUndelivered(const std::string& peer, const Status& why);
    // Says so in the log, in one line for each peer.
    void reportUndelivered();

    // From here on everything is refused.
    void close() { closed_.store(true, std::memory_order_release); }
    bool closed() const noexcept { return closed_.load(std::memory_order_acquire); }

    // Set before the first session; not called once close() and Engine::stop() have returned.
    std::function<void(const peer::Identity&, const Status&)> onPeerLost;
    // Counters of agent.stats().
    std::atomic<uint64_t> failures{0};
    std::atomic<uint64_t> lateEnds{0};
    // Of the calls that wait.
    base::BusyPoll busyPoll;

  private:
    struct Queued {
        peer::Identity from;
        std::string message;
        std::shared_ptr<void> credit;
    };
    struct Grant {
        peer::Key key{};
        bool all = false;
        std::vector<uint64_t> regions;  // sorted
    };
    struct Sender {
        peer::Identity who;
        uint64_t last = 0;  // greater: heard later
    };
    struct Undelivered {
        uint64_t count = 0;
        std::string why;  // of the last
    };
    void forgetGrants() NIXL_REQUIRES(mutex_);
    void deliverToLane(const peer::Identity& from, std::string_view message);

    const peer::Identity self_;
    const peer::Key grant_;
    memory::RegionTable regions_;
    Signal signal_;
    telemetry::SeriesTable series_;
    std::atomic<bool> closed_{false};
    mutable Mutex mutex_;
    std::deque<Queued> queue_ NIXL_GUARDED_BY(mutex_);
    uint64_t queuedBytes_ NIXL_GUARDED_BY(mutex_) = 0;
    std::map<std::string, Sender> heard_ NIXL_GUARDED_BY(mutex_);
    uint64_t heardCount_ NIXL_GUARDED_BY(mutex_) = 0;
    size_t manySenders_ NIXL_GUARDED_BY(mutex_) = kManySenders;  // look again from here on
    std::map<std::string, PluginServices::LaneListener> laneListeners_ NIXL_GUARDED_BY(mutex_);
    std::map<std::string, Undelivered> undelivered_ NIXL_GUARDED_BY(mutex_);
    std::map<peer::GrantId, Grant> grants_ NIXL_GUARDED_BY(mutex_);
    std::map<std::vector<uint64_t>, peer::Key> partial_ NIXL_GUARDED_BY(mutex_);
    size_t manyGrants_ NIXL_GUARDED_BY(mutex_) = 4096;  // look for useless ones from here on
};

}  // namespace nixl::agent
