// What all models of one schedule share: the dice, the verdict, and the regions of the
// target. Not thread-safe.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include "session/session.h"
#include "session/testing_access.h"
#include "testing/sim/sim.h"

namespace nixl::sim {

inline constexpr peer::Key kGrant{4, 2};

struct World {
    World(uint64_t seed, Bug planted) : random(seed), bug(planted), access(kGrant) {}

    uint64_t pick(uint64_t limit) { return random() % limit; }
    // The first invariant that broke is the one that is told.
    void broken(const std::string& what) {
        if (outcome.good) {
            outcome.good = false;
            outcome.what = what;
        }
    }

    std::mt19937_64 random;
    const Bug bug;
    peer::TestAccess access;
    peer::Identity target{"bob", {2}};
    uint64_t nextId = 0;
    bool targetRestarted = false;
    Outcome outcome;
};

}  // namespace nixl::sim
