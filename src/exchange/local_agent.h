// What an exchange needs of the agent it belongs to. Thread-safe. Calls may wait for locks that are
// held while backends work: never from the reactor's thread, but for those that say so.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "nixl/error.h"

#include "session/network_access.h"

namespace nixl::exchange {

// The agent's own metadata as it was at one version.
struct Snapshot {
    std::shared_ptr<const std::string> blob;
    uint64_t version = 0;
};

// What is known of another agent.
struct Known {
    peer::Identity who;
    uint64_t version = 0;  // of its metadata; 0: it came without one
};

class LocalAgent {
  public:
    virtual ~LocalAgent() = default;

    virtual const peer::Identity& self() const = 0;
    // Grows with every change of the agent's metadata. From any thread, the reactor's too.
    virtual uint64_t version() const = 0;
    // Everything, or what has changed since `since` where that is known (0: everything).
    virtual Result<Snapshot> snapshot(uint64_t since) = 0;

    // From any thread, the reactor's too.
    virtual std::optional<Known> known(const std::string& name) const = 0;
    enum class Taken : uint8_t {
        NOW,     // it is known from here on
        BEFORE,  // this or later is known already
        MISSED,  // it tells what changed since a state that is not known here
    };
    // Takes a blob, which must be of `from` itself, and carry a grant that is known already where
    // `needs_grant` says so: NOT_ALLOWED otherwise.
    virtual Result<Taken> take(std::string_view blob,
                               const peer::Identity& from,
                               bool needs_grant) = 0;
    // Forgets this agent, if it is the one known under its name.
    virtual void drop(const peer::Identity& who) = 0;
};

}  // namespace nixl::exchange
