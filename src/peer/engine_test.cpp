// Two engines against each other over real sockets: sessions, notifications, both lanes, and what
// happens when a side goes away. Both live in this process, so the host lane attaches to itself.
#include "peer/engine.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <thread>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/socket.h"
#include "connect/endpoints.h"
#include "peer/testing_engines.h"
#include "testing/until.h"

namespace nixl::peer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

class EngineTest : public testing::TestWithParam<bool> {  // true: host lane, false: stream
  protected:
    static constexpr size_t kSize = 24 << 20;
    EngineTest() : here_(kSize), there_(kSize) {
        for (size_t i = 0; i < kSize; ++i) {
            here_[i] = static_cast<char>(i * 7 + (i >> 12));
        }
        b_.access.enter(1, there_.data(), there_.size());
        a_.setMetadata(b_, GetParam() ? std::function<void(Endpoints&)>() : tcpOnly);
        LaneOptions options;
        options.host = GetParam();
        options.stream = !GetParam();
        options.fallBack = false;
        lanes_ = a_.engine->lanes(options);
        options.checksum = true;
        checkedLanes_ = a_.engine->lanes(options);
    }
    uint64_t here(uint64_t at = 0) const { return reinterpret_cast<uint64_t>(here_.data()) + at; }
    uint64_t there(uint64_t at = 0) const { return reinterpret_cast<uint64_t>(there_.data()) + at; }

    std::unique_ptr<BackendTransfer> prepare(const Plan& plan) {
        const LaneOffer offer = lanes_[0]->offer(plan.plan);
        EXPECT_GT(offer.score, 0) << offer.reason.text();
        return std::move(lanes_[0]->prepare(plan.plan)).value();
    }
    Status post(BackendTransfer& transfer, bool helping = false, const char* message = nullptr) {
        auto completion = std::make_shared<TestCompletion>();
        Status status =
            transfer.post(completion, message != nullptr ? message : "", message != nullptr);
        if (!status.ok()) {
            return status;
        }
        return completion->wait(helping ? std::function<void()>([&] { transfer.help(); })
                                        : std::function<void()>());
    }

    std::vector<char> here_;
    std::vector<char> there_;
    Side b_{"bob"};
    Side a_{"alice"};
    std::vector<std::unique_ptr<Lane>> lanes_;
    std::vector<std::unique_ptr<Lane>> checkedLanes_;
};

TEST_P(EngineTest, WritesAndReads) {
    for (const bool helping : {false, true}) {
        for (const uint64_t size : {1UL, 64UL, 65'537UL, 1UL << 20, kSize}) {
            std::memset(there_.data(), 0, size);
            Plan write(OpType::WRITE, b_, {{here(), there(), size, 0, 0, 1}});
            auto transfer = prepare(write);
            Status status = post(*transfer, helping);
            ASSERT_TRUE(status.ok()) << status.message();
            ASSERT_EQ(std::memcmp(here_.data(), there_.data(), size), 0) << size;
            EXPECT_EQ(transfer->describe().lane, GetParam() ? "host" : "stream")
                << transfer->describe().reason;
            std::vector<char> copy(here_.begin(), here_.begin() + static_cast<long>(size));
            std::memset(here_.data(), 1, size);
            Plan read(OpType::READ, b_, {{here(), there(), size, 0, 0, 1}});
            auto back = prepare(read);
            status = post(*back, helping);
            ASSERT_TRUE(status.ok()) << status.message();
            ASSERT_EQ(std::memcmp(here_.data(), copy.data(), size), 0) << size;
        }
    }
}

TEST_P(EngineTest, ScatteredAndRepeated) {
    std::vector<PlanRun> runs;
    for (uint64_t i = 0; i < 3000; ++i) {  // irregular
        runs.push_back({here(i * 4001), there((2999 - i) * 4003), 500 + i % 7, 0, 0, 1});
    }
    runs.push_back({here(13 << 20), there(14 << 20), 1000, 2000, 1000, 2000});
    Plan plan(OpType::WRITE, b_, runs);
    auto transfer = prepare(plan);
    for (int round = 0; round < 5; ++round) {
        std::fill(there_.begin(), there_.end(), 0);
        const Status status = post(*transfer, round % 2 == 0);
        ASSERT_TRUE(status.ok()) << status.message();
        Segment segment;
        SegmentCursor cursor(plan.plan.runs);
        while (cursor.next(segment)) {
            ASSERT_EQ(std::memcmp(reinterpret_cast<void*>(segment.local),
                                  reinterpret_cast<void*>(segment.remote), segment.size),
                      0);
        }
    }
}

// While it is being posted, too: never for want of a lane.
TEST_P(EngineTest, RemovedAtAnyMoment) {
    Plan plan(OpType::WRITE, b_, {{here(), there(), 100, 0, 0, 1}});
    size_t lost = 0;
    for (int round = 0; round < 1000; ++round) {
        a_.setMetadata(b_, GetParam() ? std::function<void(Endpoints&)>() : tcpOnly);
        auto transfer = prepare(plan);
        if (round % 4 != 0) {
            ASSERT_TRUE(a_.connect(b_).ok());
        }
        auto removal = std::async(std::launch::async, [&] { a_.engine->removePeer(b_.identity); });
        const auto until = Clock::now() + std::chrono::microseconds(round % 200);
        while (Clock::now() < until) {
        }
        const Status status = post(*transfer);
        ASSERT_TRUE(status.ok() || status.code() == ErrorCode::REMOTE_DISCONNECT)
            << status.message();
        lost += status.ok() ? 0 : 1;
        removal.get();
    }
    EXPECT_GT(lost, 0U);
}

TEST_P(EngineTest, NotificationAfterTheData) {
    Plan plan(OpType::WRITE, b_, {{here(), there(), 1 << 20, 0, 0, 1}});
    auto transfer = prepare(plan);
    ASSERT_TRUE(post(*transfer, false, "it is there").ok());
    const auto arrived = b_.access.take();
    ASSERT_EQ(arrived.size(), 1U);
    EXPECT_EQ(arrived[0], std::pair(std::string("alice"), std::string("it is there")));
    EXPECT_EQ(std::memcmp(here_.data(), there_.data(), 1 << 20), 0);
}

TEST_P(EngineTest, EmptyTransferWithNotification) {
    Plan plan(OpType::WRITE, b_, {});
    auto transfer = prepare(plan);
    ASSERT_TRUE(post(*transfer, false, "nothing").ok());
    EXPECT_EQ(b_.access.take().size(), 1U);
}

TEST_P(EngineTest, DeregisteredAndForeignMemoryIsRefused) {
    Plan plan(OpType::WRITE, b_, {{here(), there(), 100, 0, 0, 1}});
    auto transfer = prepare(plan);
    ASSERT_TRUE(post(*transfer).ok());
    const memory::RegionPtr region = b_.access.get(1);
    ASSERT_TRUE(static_cast<bool>(region));
    region->revoke();
    b_.engine->revoke(1, 1);
    ASSERT_TRUE(b_.engine->awaitQuiet(Clock::now() + seconds(5)).ok());
    const std::vector<char> before = there_;
    here_[0] = static_cast<char>(here_[0] + 1);
    EXPECT_EQ(post(*transfer).code(), ErrorCode::NOT_FOUND);
    EXPECT_EQ(before, there_);
    region->restore();
    b_.engine->restore(1, 1);
    EXPECT_TRUE(post(*transfer).ok());
}

TEST_P(EngineTest, MemoryThatIsNotThereNamesThePart) {
    b_.access.enter(1, reinterpret_cast<void*>(4096), 1 << 20);
    Plan plan(OpType::READ, b_,
              {{here(), there(), 4096, 0, 0, 1}, {here(8192), 8192, 4096, 0, 0, 1}});
    if (!GetParam()) {
        plan.runs.erase(plan.runs.begin());
        plan.runs[0].planOffset = 0;
        plan.plan.runs = plan.runs;
        plan.plan.bytes = 4096;
    }
    auto transfer = prepare(plan);
    auto completion = std::make_shared<TestCompletion>();
    ASSERT_TRUE(transfer->post(completion, "", false).ok());
    EXPECT_FALSE(completion->wait().ok());
    ASSERT_EQ(completion->failures().size(), 1U);
}

// Overlapping destinations are the damage: the second piece changes the first one's bytes before
// they are checked.
TEST_P(EngineTest, ChecksumsFindDamageAndNameIt) {
    std::vector<PlanRun> runs;
    for (uint64_t i = 0; i < 200; ++i) {
        runs.push_back({here(i * 8192), there(i * 8192), 4096, 0, 0, 1});
    }
    Plan good(OpType::WRITE, b_, runs);
    runs[150].remote = there(149 * 8192 + 100);
    Plan bad(OpType::WRITE, b_, runs);
    for (Plan* plan : {&good, &bad}) {
        auto transfer = std::move(checkedLanes_[0]->prepare(plan->plan)).value();
        auto completion = std::make_shared<TestCompletion>();
        ASSERT_TRUE(transfer->post(completion, "", false).ok());
        const Status status = completion->wait();
        EXPECT_EQ(status.ok(), plan == &good) << status.message();
        if (plan == &good) {
            continue;
        }
        EXPECT_EQ(status.code(), ErrorCode::BACKEND);
        ASSERT_FALSE(completion->failures().empty());
        const SegmentFailure& failure = completion->failures()[0];
        const uint64_t first = failure.planOffset + failure.done;
        EXPECT_LE(first, 149U * 4096 + 100);
        EXPECT_GT(failure.planOffset + failure.size, 149U * 4096 + 100);
        if (GetParam()) {
            EXPECT_EQ(first, 149U * 4096 + 100);  // the byte itself
        }
        // Whatever is not named is in place.
        for (uint64_t i = 0; i < first / 4096; ++i) {
            EXPECT_EQ(std::memcmp(&here_[i * 8192], &there_[i * 8192], 4096), 0) << i;
        }
    }
    Plan back(OpType::READ, b_, good.runs);
    std::memset(here_.data(), 0, kSize);
    auto transfer = std::move(checkedLanes_[0]->prepare(back.plan)).value();
    EXPECT_TRUE(post(*transfer).ok());
}

// What failed is named to its last byte, also where it was never tried.
TEST_P(EngineTest, EverythingBehindAFailureIsNamed) {
    b_.access.enter(1, reinterpret_cast<void*>(4096), 48 << 20);
    Plan plan(OpType::WRITE, b_, {{here(), 4096, kSize, 0, 0, 1}});
    auto transfer = prepare(plan);
    auto completion = std::make_shared<TestCompletion>();
    ASSERT_TRUE(transfer->post(completion, "", false).ok());
    EXPECT_FALSE(completion->wait().ok());
    std::vector<bool> named(kSize);
    for (const SegmentFailure& failure : completion->failures()) {
        std::fill_n(named.begin() + static_cast<long>(failure.planOffset + failure.done),
                    failure.size - failure.done, true);
    }
    EXPECT_EQ(std::count(named.begin(), named.end(), true), static_cast<long>(kSize));
}

// Of what was never begun nobody knows more than that it is not in place: canceled, not failed with
// the pieces alone that were tried.
TEST_P(EngineTest, CanceledAfterAFailureIsCanceled) {
    if (!GetParam()) {
        GTEST_SKIP() << "the stream lane names what was never tried";
    }
    b_.access.enter(1, reinterpret_cast<void*>(4096), 48 << 20);
    Plan plan(OpType::WRITE, b_, {{here(), 4096, kSize, 0, 0, 1}});
    auto transfer = prepare(plan);
    ASSERT_TRUE(a_.connect(b_).ok());
    std::promise<void> go_on;
    const auto stopped = go_on.get_future().share();
    for (unsigned i = 0; i < a_.pool.threads(); ++i) {
        a_.pool.run([stopped] { stopped.wait(); });
    }
    auto completion = std::make_shared<TestCompletion>();
    ASSERT_TRUE(transfer->post(completion, "", false).ok());
    transfer->help();  // the first piece
    completion->requestCancel();
    transfer->cancel();
    go_on.set_value();
    EXPECT_EQ(completion->wait().code(), ErrorCode::CANCELED);
    EXPECT_TRUE(completion->failures().empty());
}

TEST_P(EngineTest, CancelEndsSoon) {
    Plan plan(OpType::READ, b_, {{here(), there(), kSize, 0, 0, 1}});
    auto transfer = prepare(plan);
    ASSERT_TRUE(post(*transfer).ok());
    for (int round = 0; round < 20; ++round) {
        auto completion = std::make_shared<TestCompletion>();
        ASSERT_TRUE(transfer->post(completion, "", false).ok());
        // sleeps: so that the cancel meets the transfer at another moment in each round
        std::this_thread::sleep_for(std::chrono::microseconds(round * 100));
        completion->requestCancel();
        const auto begin = Clock::now();
        transfer->cancel();
        const Status status = completion->wait();
        EXPECT_LT(Clock::now() - begin, seconds(10));
        EXPECT_TRUE(status.ok() || status.code() == ErrorCode::CANCELED) << status.message();
        std::memset(here_.data(), 'c', kSize);         // the canary
        std::this_thread::sleep_for(milliseconds(2));  // sleeps: for a byte that came late
        EXPECT_EQ(std::count(here_.begin(), here_.end(), 'c'), static_cast<long>(kSize));
    }
}

TEST_P(EngineTest, PeerThatEndsFailsItsTransfers) {
    Plan plan(OpType::WRITE, b_, {{here(), there(), kSize, 0, 0, 1}});
    auto transfer = prepare(plan);
    ASSERT_TRUE(post(*transfer, false, "x").ok());
    b_.engine.reset();
    const Status status = post(*transfer, false, "y");
    EXPECT_EQ(status.code(), ErrorCode::REMOTE_DISCONNECT) << status.message();
    EXPECT_NE(status.message().find("bob"), std::string::npos) << status.message();
}

INSTANTIATE_TEST_SUITE_P(Lanes, EngineTest, testing::Bool(), [](const auto& info) {
    return info.param ? "host" : "stream";
});

TEST(Engine, NotificationsBothWaysAndOrder) {
    Side a("alice");
    Side b("bob");
    a.setMetadata(b);
    for (int i = 0; i < 200; ++i) {
        ASSERT_TRUE(
            a.engine->sendNotification(b.identity, std::to_string(i), [](const Status&) {}).ok());
    }
    ASSERT_TRUE(a.notify(b.identity, std::string(1 << 20, 'x')).ok());
    const auto arrived = b.access.take();
    ASSERT_EQ(arrived.size(), 201U);
    for (size_t i = 0; i < 200; ++i) {
        EXPECT_EQ(arrived[i].second, std::to_string(i));
    }
    // Bob was never told of Alice, and answers.
    const auto who = b.engine->sessionOf("alice");
    ASSERT_TRUE(who.has_value());
    ASSERT_TRUE(b.notify(*who, "answer").ok());
    EXPECT_EQ(a.access.take().at(0).second, "answer");
}

TEST(Engine, BothConnectAtOnce) {
    for (int round = 0; round < 30; ++round) {
        Side a("alice");
        Side b("bob");
        a.setMetadata(b);
        b.setMetadata(a);
        auto other = std::async(std::launch::async, [&] { return b.connect(a); });
        EXPECT_TRUE(a.connect(b).ok());
        EXPECT_TRUE(other.get().ok());
        ASSERT_TRUE(a.notify(b.identity, "to b").ok());
        ASSERT_TRUE(b.notify(a.identity, "to a").ok());
        EXPECT_EQ(a.access.take().size(), 1U);
        EXPECT_EQ(b.access.take().size(), 1U);
    }
}

TEST(Engine, UnknownPeersGetNothing) {
    Side a("alice");
    Side b("bob");
    ASSERT_TRUE(a.engine->addPeer(b.identity, b.engine->connectionInfo(), opens(Key{9, 9})).ok());
    EXPECT_EQ(a.connect(b).code(), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(a.notify(b.identity, "x").code(), ErrorCode::NOT_ALLOWED);
    EXPECT_TRUE(b.access.take().empty());
    EngineConfig with_key;
    with_key.authKey = "sixteen bytes and more";
    Side c("carol", with_key);
    a.setMetadata(c);
    EXPECT_EQ(a.connect(c).code(), ErrorCode::NOT_ALLOWED);
    Side d("dave", with_key);
    d.setMetadata(c);
    EXPECT_TRUE(d.connect(c).ok());
}

// Another incarnation of a name that has a live session: trying again would change nothing.
TEST(Engine, ANameWithALiveSessionIsRefusedAtOnce) {
    EngineConfig patient;
    patient.peerTimeout = std::chrono::minutes(10);
    Side b("bob");
    Side first("alice");
    first.setMetadata(b);
    ASSERT_TRUE(first.connect(b).ok());
    Side second("alice", patient);
    second.setMetadata(b);
    const Status status = second.connect(b);
    EXPECT_EQ(status.code(), ErrorCode::NOT_ALLOWED);
    EXPECT_NE(status.message().find("has a live session"), std::string::npos) << status.message();
    EXPECT_TRUE(first.notify(b.identity, "still here").ok());
}

// Whoever came without having been added is forgotten when it is gone; who was added is not.
TEST(Engine, UnknownPeersAreForgotten) {
    Side b("bob");
    Side added("added");
    b.setMetadata(added);
    for (int i = 0; i < 20; ++i) {
        Side a("alice" + std::to_string(i));
        a.setMetadata(b);
        ASSERT_TRUE(a.notify(b.identity, "hello").ok());
        ASSERT_TRUE(b.notify(a.identity, "an answer").ok());
    }
    testkit::eventually([&] { return b.engine->stats().at("peers") <= 1; });
    EXPECT_EQ(b.engine->stats().at("peers"), 1U);
    EXPECT_TRUE(b.notify(added.identity, "still known").ok());
}

TEST(Engine, GarbageConnectionsDoNotDelay) {
    Side a("alice");
    Side b("bob");
    a.setMetadata(b);
    const auto endpoints = Endpoints::decode(b.engine->connectionInfo()).value();
    std::vector<base::Fd> idle;
    for (const base::Target& target : targetsOf(endpoints, base::bootId())) {
        for (int i = 0; i < 50; ++i) {
            auto fd = base::startConnect(target);
            if (fd.ok()) {
                if (i % 2 == 0) {
                    const std::string garbage(100, static_cast<char>(i));
                    static_cast<void>(
                        !::send(fd.value().get(), garbage.data(), garbage.size(), MSG_NOSIGNAL));
                }
                idle.push_back(std::move(fd).value());
            }
        }
    }
    const auto begin = Clock::now();
    EXPECT_TRUE(a.connect(b).ok());
    EXPECT_LT(Clock::now() - begin, seconds(4));  // who waited for them would need 5
}

// No descriptor is left for who connects: it waits, over each socket, and is served when there is
// one again. An engine that ends meanwhile leaves no timer behind.
TEST(Engine, WaitsForADescriptor) {
    Side a("alice");
    for (const bool ends : {false, true}) {
        auto b = std::make_unique<Side>("bob");
        a.setMetadata(*b);
        const auto endpoints = Endpoints::decode(b->engine->connectionInfo()).value();
        std::vector<base::Fd> waiting;
        const auto targets = targetsOf(endpoints, base::bootId());
        ASSERT_GE(targets.size(), 2U);
        for (const base::Target* target : {&targets.front(), &targets.back()}) {
            waiting.emplace_back(socket(target->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        }
        rlimit before{};
        getrlimit(RLIMIT_NOFILE, &before);
        const int lowest = dup(0);
        ASSERT_GE(lowest, 0);
        close(lowest);
        const rlimit none{static_cast<rlim_t>(lowest), before.rlim_max};
        setrlimit(RLIMIT_NOFILE, &none);
        for (size_t i = 0; i < waiting.size(); ++i) {
            const base::Target& target = i == 0 ? targets.front() : targets.back();
            EXPECT_EQ(connect(waiting[i].get(), reinterpret_cast<const sockaddr*>(&target.address),
                              target.length),
                      0);
        }
        // sleeps: the engine tries to accept, and cannot, which nobody sees from outside
        std::this_thread::sleep_for(milliseconds(50));
        if (ends) {
            b->engine.reset();
            std::this_thread::sleep_for(milliseconds(150));  // sleeps: past its next try
        }
        setrlimit(RLIMIT_NOFILE, &before);
        if (!ends) {
            EXPECT_TRUE(a.connect(*b).ok());
            char byte = 0;
            for (const base::Fd& fd : waiting) {
                ASSERT_EQ(send(fd.get(), "unknown.", 8, MSG_NOSIGNAL), 8);
                EXPECT_EQ(recv(fd.get(), &byte, 1, 0), 0) << "served: sent away";
            }
        }
    }
}

TEST(Engine, NobodyThere) {
    Side a("alice");
    auto b = std::make_unique<Side>("bob");
    a.setMetadata(*b);
    b->engine.reset();
    const Status status = a.connect(*b);
    EXPECT_EQ(status.code(), ErrorCode::REMOTE_DISCONNECT) << status.message();
    EXPECT_EQ(a.engine->sendNotification({"nobody", {}}, "x", [](const Status&) {}).code(),
              ErrorCode::NOT_FOUND);
}

TEST(Engine, RemovedAndAddedAgain) {
    Side a("alice");
    Side b("bob");
    for (int round = 0; round < 50; ++round) {
        a.setMetadata(b);
        ASSERT_TRUE(a.notify(b.identity, "x").ok());
        a.engine->removePeer(b.identity);
    }
    EXPECT_EQ(b.access.take().size(), 50U);
    a.engine->stop();
    // Told late it would end what began after the peer was added anew.
    EXPECT_EQ(a.access.lost(), 0U) << "who removes a peer knows that it is gone";
}

TEST(Engine, MalformedConnectionInfo) {
    Side a("alice");
    const std::string good = a.engine->connectionInfo();
    for (size_t cut = 1; cut < good.size(); ++cut) {
        EXPECT_FALSE(a.engine->addPeer({"x", {1}}, good.substr(0, cut), opens({})).ok());
    }
    EXPECT_FALSE(a.engine->addPeer({"x", {1}}, good + "x", opens({})).ok());
    EXPECT_TRUE(a.engine->addPeer({"x", {1}}, "", opens({})).ok());
}

}  // namespace
}  // namespace nixl::peer
