// What the session engine asks of the agent whose memory peers reach: is this access granted, and
// where do notifications go. Implemented by the agent. All calls come from any thread, hold no
// lock of the engine, and must not block.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "nixl/backend.h"

#include "memory/region.h"

namespace nixl::peer {

using Key = std::array<uint8_t, 16>;

// Who somebody is: the name, and a random number drawn for each agent object.
struct Identity {
    std::string name;
    Key incarnation{};
    bool operator==(const Identity&) const = default;
};

// The public name of a grant's key (session/wire.h: grantId).
using GrantId = uint64_t;

class NetworkAccess {
  public:
    virtual ~NetworkAccess() = default;
    // The key of a grant this agent gave away in its metadata; empty where there is none.
    virtual std::optional<Key> grantKey(GrantId grant) = 0;
    // The region `id` if `grant` opens it, it is of this `generation` and allows `op`. Not pinned:
    // the engine pins it around each piece of input or output and checks every range itself.
    // NOT_FOUND (unknown, deregistered, other generation) or NOT_ALLOWED, naming the region.
    virtual Result<memory::RegionPtr> region(GrantId grant,
                                             uint64_t id,
                                             uint32_t generation,
                                             OpType op) = 0;
    // A notification for this agent's queue. `credit` must be dropped when the application takes
    // it (or the agent ends): that lets the sender send more.
    virtual void deliver(const Identity& from,
                         std::string message,
                         std::shared_ptr<void> credit) = 0;
    // The peer is gone or restarted: for those who wait. Not told of who was removed here.
    virtual void peerLost(const Identity& /*peer*/, const Status& /*why*/) {}
};

}  // namespace nixl::peer
