// The agent's network engine: the sessions to all peers and the lanes host and stream over them.
// Owned by the agent, created when the first network backend is; must be destroyed before the
// reactor, the copy pool and the NetworkAccess it was given. All calls are thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/lane.h"
#include "nixl/services.h"

#include "base/futex.h"
#include "session/grants.h"
#include "session/network_access.h"

namespace nixl::peer {

struct EngineConfig {
    Identity self;
    std::string authKey;  // empty, or at least 16 bytes
    std::chrono::milliseconds peerTimeout{10'000};
    std::string socketDir;           // empty: no path socket
    unsigned streamConnections = 0;  // per peer and direction; 0: chosen
    std::string tcpCongestion;       // of data connections: base::chooseCongestion
    unsigned busyPollMicroseconds = 0;
    // Callers who come again within this time poll: small requests are left to them.
    std::chrono::microseconds pollDistance{100};
};

struct LaneOptions {
    bool host = true;
    bool stream = true;
    bool fallBack = true;  // from host to stream, where the session does not allow the former
    uint64_t inlineBudgetMicroseconds = 20;
    bool checksum = false;  // stream: CRC32C of each chunk; host: what was copied is read again
};

using Done = std::function<void(Status)>;  // called once, from any thread, no lock held

class EngineImpl;

class Engine {
  public:
    // Opens the sockets peers reach this agent by.
    static Result<std::unique_ptr<Engine>> create(const EngineConfig& config,
                                                  Reactor& reactor,
                                                  WorkPool& pool,
                                                  NetworkAccess& access);
    // Ends all sessions; whatever is pending ends CANCELED before it returns (at most about 1 s).
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Ends all sessions, as the destructor does, while others may still call; idempotent.
    void stop();

    // For the blob: how to reach this agent. Opaque, at most 4 KiB.
    std::string connectionInfo();

    // Makes a peer known; again: updates endpoints and grants. A peer that connected to us
    // by itself is known already. INVALID_PARAM where the bytes are not connection info.
    // Empty `connection_info`: nothing is known of how to reach it (it may still connect to us).
    Status addPeer(const Identity& peer, std::string_view connection_info, GrantsPtr grants);
    // Ends the session; transfers to it fail with REMOTE_DISCONNECT. Never blocks.
    void removePeer(const Identity& peer);
    // The live incarnation of a name that has a session with us, known or not; empty if none.
    std::optional<Identity> sessionOf(std::string_view name);

    // Opens the session ahead of use (it opens by itself when needed).
    void connect(const Identity& peer, Done done);
    // `done` after the peer has queued it, or with the reason why it never will. At most 1 MiB.
    // The returned status is what is known at once (limit reached, unknown peer): then `done` is
    // not called.
    Status sendNotification(const Identity& peer, std::string message, Done done);

    // The project's network lanes, for LaneBackend. They refer to the engine.
    std::vector<std::unique_ptr<Lane>> lanes(const LaneOptions& options);

    // Deregistration: after Region::revoke() and before the region's memory goes. `revoke` makes
    // attaching peers refuse the region, `awaitQuiet` waits until none is inside an access begun
    // before (TIMEOUT names the peer), `restore` takes a revocation back.
    void revoke(uint64_t region_id, uint32_t generation);
    void restore(uint64_t region_id, uint32_t generation);
    Status awaitQuiet(base::Deadline deadline);

    // For callers who poll: serves sessions and small requests without blocking, where nobody else
    // does.
    void progress();
    // For callers who stop polling and sleep until they are woken; and for those who will sleep on
    // the agent's descriptor. What comes is the threads' work then.
    void aboutToSleep();
    void sleepOnEvents();
    // For lanes of plugins, which may keep it for longer than the engine.
    std::shared_ptr<Pollers> pollers();
    // A session with the peer is up.
    bool ready(const Identity& peer) const;
    // It was added here, or has come by itself and is not known to be gone.
    bool hasPeer(const Identity& peer) const;

    std::map<std::string, uint64_t> stats() const;

    EngineImpl& impl() { return *impl_; }

  private:
    explicit Engine(std::shared_ptr<EngineImpl> impl);
    std::shared_ptr<EngineImpl> impl_;
};

}  // namespace nixl::peer
