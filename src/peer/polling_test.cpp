// Callers who poll: two engines whose callers poll wake no thread for small requests.
#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "base/poll_set.h"
#include "peer/testing_engines.h"

namespace nixl::peer {
namespace {

using std::chrono::seconds;

// 64 KiB between two engines over the lane stream.
struct StreamTransfer {
    StreamTransfer(OpType op, Side& near, Side& far)
        : plan(op,
               far,
               {{reinterpret_cast<uint64_t>(source.data()),
                 reinterpret_cast<uint64_t>(target.data()), source.size()}}) {
        far.access.enter(1, target.data(), target.size());
        near.setMetadata(far, tcpOnly);
        LaneOptions options;
        options.host = false;
        options.fallBack = false;
        lanes = near.engine->lanes(options);
        EXPECT_GT(lanes[0]->offer(plan.plan).score, 0);
        transfer = std::move(lanes[0]->prepare(plan.plan)).value();
    }
    std::vector<char> source = std::vector<char>(1 << 16, 's');
    std::vector<char> target = std::vector<char>(1 << 16);
    Plan plan;
    std::vector<std::unique_ptr<Lane>> lanes;
    std::unique_ptr<BackendTransfer> transfer;
};

// The guard does not give back what was left to callers for 100 s here: a caller who sleeps does.
TEST(Polling, WhoSleepsIsServedByThreads) {
    EngineConfig config;
    config.pollDistance = seconds(100);
    Side b("bob");
    Side a("alice", config);
    StreamTransfer moves(OpType::READ, a, b);
    BackendTransfer* const transfer = moves.transfer.get();
    for (int round = 0; round < 5; ++round) {
        for (int i = 0; i < 10; ++i) {
            a.engine->progress();
        }
        const auto completion = std::make_shared<TestCompletion>();
        ASSERT_TRUE(transfer->post(completion, "", false).ok());
        a.engine->aboutToSleep();
        ASSERT_TRUE(completion->wait().ok());
    }
}

// Both callers poll (and are taken for it also where they lose their processor for long), so nobody
// needs a thread.
TEST(Polling, SmallRequestsWakeNoThread) {
    EngineConfig config;
    config.pollDistance = seconds(100);
    Side b("bob", config);
    Side a("alice", config);
    StreamTransfer moves(OpType::WRITE, a, b);
    BackendTransfer* const transfer = moves.transfer.get();
    const auto move = [&] {
        const auto completion = std::make_shared<TestCompletion>();
        ASSERT_TRUE(transfer->post(completion, "", false).ok());
        const auto look = [&] {
            a.engine->progress();
            b.engine->progress();
        };
        look();  // who polls does so also where the threads were quicker
        const Status status = completion->wait(look);
        ASSERT_TRUE(status.ok()) << status.message();
    };
    for (int i = 0; i < 10; ++i) {
        move();  // opens the session and a connection; the threads come to rest
    }
    const auto sleeps = [&] {
        return a.engine->stats().at("stream_sleeps") + b.engine->stats().at("stream_sleeps");
    };
    const uint64_t before = sleeps();
    for (int i = 0; i < 1000; ++i) {
        move();
    }
    // A thread that was still on its way to sleep is not one that was woken: each round used to
    // wake one on either side.
    EXPECT_LE(sleeps() - before, 8U);
    EXPECT_EQ(moves.target, moves.source);
}

}  // namespace
}  // namespace nixl::peer
