// The seeded simulator: three agents' protocol state machines (handshake, session, both sides of
// the stream lane, revocation page, the pool of data connections) over a network that delays, cuts
// anywhere, stalls, half breaks and breaks, with agents that die, restart, cancel and deregister,
// and threads that help. No threads, no clock, no sockets: a seed is a schedule. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace nixl::sim {

// Mistakes that can be planted, to show that the simulator finds them.
enum class Bug : uint8_t {
    NONE,
    EARLY_ACK,      // a notification is acknowledged before it is queued
    WRONG_RESUME,   // a reconnect claims what has not arrived
    NO_FENCE,       // the target does not look at revocations
    MARK_ORDER,     // the host lane looks at generations before it enters its mark
    EARLY_NOTIFY,   // a transfer's notification is sent before its data has arrived
    HELP_ORDER,     // two threads hand on a session's events at the same time
    EARLY_UNMAP,    // a mapping goes while a copy through it is under way
    LOST_OPEN,      // a data connection that was asked for is never opened
    EARLY_RELEASE,  // memory of a canceled transfer is used again before cancel() has returned
};

struct Outcome {
    bool good = true;
    std::string what;  // the invariant that broke
    uint64_t steps = 0;
    uint64_t notifications = 0;
    uint64_t transfers = 0;
};

// One schedule of sessions and transfers; one of the revocation page.
Outcome runSession(uint64_t seed, Bug bug);
Outcome runPages(uint64_t seed, Bug bug);
// One of a pool of data connections.
Outcome runPool(uint64_t seed, Bug bug);
// All of them.
Outcome runSchedule(uint64_t seed, Bug bug);

}  // namespace nixl::sim
