// The attachments of two agents to each other, over a session whose frames the test carries.
#include "lanes/host/attachment.h"

#include <deque>
#include <thread>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/reactor.h"
#include "session/testing_access.h"

namespace nixl::peer {
namespace {

using testing::HasSubstr;

constexpr size_t kPage = 4096;
const Key kCookie{7, 7, 7};

// Runs what it is given when the test says so.
class Later final : public WorkPool {
  public:
    unsigned threads() const override { return 1; }
    void run(std::function<void()> task) override { tasks.push_back(std::move(task)); }
    void work() {
        while (!tasks.empty()) {
            const auto task = std::move(tasks.front());
            tasks.pop_front();
            task();
        }
    }
    std::deque<std::function<void()>> tasks;
};

struct Frame {
    uint64_t connection;
    FrameType type;
    std::string body;
    std::vector<base::Fd> descriptors;
};

class Control final : public HostControl {
  public:
    bool sendFrame(uint64_t connection,
                   FrameType type,
                   std::string_view body,
                   std::vector<base::Fd> descriptors) override {
        if (connection != current) {
            return false;
        }
        sent.push_back({connection, type, std::string(body), std::move(descriptors)});
        return true;
    }
    GrantsPtr grants() override { return known; }
    void hostDecided(uint64_t connection) override { decided = connection; }
    void violated(const Status& why) override { violation = why; }
    void processEndedNow() override { ended = true; }

    uint64_t current = 0;
    GrantsPtr known;
    std::deque<Frame> sent;
    uint64_t decided = 0;
    Status violation;
    bool ended = false;
};

struct End {
    explicit End(const std::string& peer, const Key& grant_of_peer)
        : reactor(base::EpollReactor::create().value()) {
        control->known = std::make_shared<Grants>(grant_of_peer);
        attachment = std::make_shared<HostAttachment>(
            HostAttachment::Context{peer, *reactor, pool, target, access, owner}, control);
    }
    void connect(uint64_t number, bool resumed = false) {
        base::SocketPeer process;
        process.local = true;
        process.pid = getpid();
        attachment->connecting({number, resumed, base::Digest{9}, process,
                                base::Fd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0))),
                                reinterpret_cast<uint64_t>(&kCookie), kCookie});
        control->current = number;
        attachment->offer({});
    }
    // Hands over what this end has sent.
    void carryTo(End& other) {
        while (!control->sent.empty()) {
            const Frame frame = std::move(control->sent.front());
            control->sent.pop_front();
            other.attachment->onFrame(frame.connection, frame.type, frame.body, frame.descriptors);
        }
    }

    const std::shared_ptr<int> owner = std::make_shared<int>(0);
    std::unique_ptr<Reactor> reactor;
    Later pool;
    HostTarget target;
    TestAccess access;
    const std::shared_ptr<Control> control = std::make_shared<Control>();
    std::shared_ptr<HostAttachment> attachment;
};

class AttachmentTest : public testing::Test {
  public:
    AttachmentTest() : near_("far", Key{1, 2, 3}), far_("near", Key{1, 2, 3}) {
        file_ = base::Fd(memfd_create("shared", MFD_CLOEXEC | MFD_ALLOW_SEALING));
        EXPECT_EQ(posix_fallocate(file_.get(), 0, kPage), 0);
        EXPECT_EQ(fcntl(file_.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
        memory_ = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
        EXPECT_NE(memory_, MAP_FAILED);
        far_.access.enter(5, memory_, kPage);
    }
    ~AttachmentTest() override {
        static_cast<void>(near_.attachment->sessionLost());
        static_cast<void>(far_.attachment->sessionLost());
        munmap(memory_, kPage);
    }

  protected:
    void connect(uint64_t number, bool resumed = false) {
        near_.connect(number, resumed);
        far_.connect(number, resumed);
        carry();
    }
    void carry() {
        while (!near_.control->sent.empty() || !far_.control->sent.empty() ||
               !far_.pool.tasks.empty()) {
            near_.carryTo(far_);
            far_.pool.work();
            far_.carryTo(near_);
        }
    }
    RegionMapPtr want() {
        const PlanRegion region{
            MemType::DRAM, reinterpret_cast<uint64_t>(memory_), kPage, 0, {}, nullptr, 5, 1};
        PlanRun run;
        run.size = kPage;
        TransferPlan plan;
        plan.remoteRegions = {&region, 1};
        plan.runs = {&run, 1};
        return near_.attachment->mapRegions(plan).at(0);
    }

    base::Fd file_;
    void* memory_ = nullptr;
    End near_;
    End far_;
};

TEST_F(AttachmentTest, APeerOfAnotherHostIsNone) {
    near_.control->current = 1;
    near_.attachment->connecting({1, false, {}, {}, {}, 0, {}});
    near_.attachment->offer("the peer is on another host");
    EXPECT_EQ(near_.control->decided, 1U);
    const auto choice = near_.attachment->choice();
    EXPECT_TRUE(choice.decided);
    EXPECT_EQ(choice.peer, nullptr);
    EXPECT_THAT(choice.reason, HasSubstr("another host"));
    EXPECT_TRUE(near_.control->sent.empty());
}

TEST_F(AttachmentTest, WhatIsAskedBeforeTheSessionIsMappedOnceItIsThere) {
    const RegionMapPtr map = want();
    EXPECT_TRUE(map->pending());
    connect(1);
    EXPECT_EQ(near_.control->decided, 1U);
    EXPECT_NE(near_.attachment->choice().peer, nullptr);
    EXPECT_TRUE(map->whole()) << map->reason();
    uint64_t room = 0;
    EXPECT_NE(map->mapped()->find(reinterpret_cast<uint64_t>(memory_), room), memory_);
}

TEST_F(AttachmentTest, ANoticeFollowsTheAnswerAndComesOnce) {
    connect(1);
    const RegionMapPtr map = want();
    near_.carryTo(far_);
    const std::pair<uint64_t, uint32_t> region{5, 1};
    far_.attachment->announceRevoked({&region, 1});
    EXPECT_TRUE(far_.control->sent.empty()) << "the peer has nothing of it yet";
    far_.pool.work();
    far_.attachment->announceRevoked({&region, 1});
    far_.attachment->announceRevoked({&region, 1});
    ASSERT_EQ(far_.control->sent.size(), 2U);
    far_.carryTo(near_);
    EXPECT_EQ(map->mapped(), nullptr);
    EXPECT_TRUE(near_.control->violation.ok());
}

TEST_F(AttachmentTest, WhoWaitsForMappingsIsToldWhenTheSessionEnds) {
    connect(1);
    const RegionMapPtr map = want();
    int told = 0;
    near_.attachment->whenMapped([&](const Status&) { ++told; });
    EXPECT_EQ(told, 0);
    auto waiting = near_.attachment->sessionLost();
    ASSERT_EQ(waiting.size(), 1U);
    waiting[0](Status::disconnected("gone"));
    EXPECT_EQ(told, 1);
    EXPECT_FALSE(near_.attachment->choice().decided);
    near_.attachment->whenMapped([&](const Status&) { ++told; });
    EXPECT_EQ(told, 2) << "without a session there is nothing to wait for";
}

TEST_F(AttachmentTest, AnAnswerToAConnectionOfThePastIsNone) {
    connect(1);
    const RegionMapPtr map = want();
    near_.carryTo(far_);
    far_.pool.work();
    // Both connect anew, and the session goes on: the answer still comes, of the first connection.
    std::deque<Frame> late;
    late.swap(far_.control->sent);
    near_.attachment->disconnected();
    far_.attachment->disconnected();
    near_.connect(2, true);
    for (const Frame& frame : late) {
        near_.attachment->onFrame(frame.connection, frame.type, frame.body, frame.descriptors);
    }
    EXPECT_FALSE(map->whole());
    EXPECT_TRUE(map->pending()) << "it is asked for again";
    far_.connect(2, true);
    carry();
    EXPECT_TRUE(map->whole()) << map->reason();
    EXPECT_TRUE(near_.control->violation.ok()) << near_.control->violation.message();
}

TEST_F(AttachmentTest, TwoRequestsAtOnceAreAViolation) {
    connect(1);
    want();
    ASSERT_EQ(near_.control->sent.size(), 1U);
    const std::string body = near_.control->sent.front().body;
    far_.attachment->onFrame(1, FrameType::MAP_REQUEST, body, {});
    far_.attachment->onFrame(1, FrameType::MAP_REQUEST, body, {});
    EXPECT_THAT(far_.control->violation.message(), HasSubstr("another one is being answered"));
}

TEST_F(AttachmentTest, AFrameThatCannotBeSentIsAskedForAgain) {
    connect(1);
    near_.control->current = 2;  // the link has taken another connection, and is about to tell
    const RegionMapPtr map = want();
    EXPECT_TRUE(near_.control->sent.empty());
    near_.connect(2, true);
    far_.connect(2, true);
    carry();
    EXPECT_TRUE(map->whole()) << map->reason();
}

}  // namespace
}  // namespace nixl::peer
