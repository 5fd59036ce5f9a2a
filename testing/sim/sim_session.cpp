// One schedule: alice, to whom everything happens, and carol, to whom nothing does, with the same
// target.
#include <string>

#include "testing/sim/pair_model.h"
#include "testing/sim/world.h"

namespace nixl::sim {

namespace {

// The network recovers: then everything must come to its end.
void heal(World& world, PairModel& alice, PairModel& carol) {
    for (int round = 0; round < 4000 && world.outcome.good; ++round) {
        const bool alice_ended = alice.resolve(round);
        const bool carol_ended = carol.resolve(round);
        if (alice_ended && carol_ended) {
            return;
        }
    }
    if (world.outcome.good) {
        world.broken("something waits for ever: " + std::to_string(alice.waiting()) + " + " +
                     std::to_string(carol.waiting()) + " notifications");
    }
}

}  // namespace

Outcome runSession(uint64_t seed, Bug bug) {
    World world(seed, bug);
    PairModel alice(world, "alice", 1, 1, false);
    PairModel carol(world, "carol", 3, 2, true);
    const uint64_t steps = 200 + world.pick(300);
    for (uint64_t i = 0; i < steps && world.outcome.good; ++i) {
        ++world.outcome.steps;
        PairModel& one = world.pick(3) == 0 ? carol : alice;
        one.step();
        one.check();
        if (world.pick(3000) == 0) {
            world.targetRestarted = true;
            alice.restartTarget();
            carol.restartTarget();
        }
    }
    heal(world, alice, carol);
    return world.outcome;
}

}  // namespace nixl::sim
