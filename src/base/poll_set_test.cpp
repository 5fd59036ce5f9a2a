// The poll set: who polls serves what is ready, and the threads watch again when nobody does.
#include "base/poll_set.h"

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/reactor.h"

namespace nixl::base {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::seconds;

class CountingMember final : public PollSet::Member {
  public:
    CountingMember() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
    void pollReady() override {
        uint64_t value = 0;
        served_ += read(fd_.get(), &value, sizeof(value)) > 0 ? 1 : 0;
    }
    void resumeReads() override {
        if (!again_.exchange(true)) {
            told_.set_value();
        }
    }
    void makeReady() const {
        const uint64_t one = 1;
        ASSERT_EQ(write(fd_.get(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
    }
    int fd() const { return fd_.get(); }
    int served() const { return served_; }
    bool resumed() const { return again_.load(); }
    bool awaitWatch() {
        return told_.get_future().wait_for(seconds(20)) == std::future_status::ready;
    }

  private:
    Fd fd_;
    int served_ = 0;
    std::atomic<bool> again_{false};
    std::promise<void> told_;
};

class PollSetTest : public testing::Test {
  protected:
    void TearDown() override { set_.stop(); }

    std::unique_ptr<base::EpollReactor> reactor_ = std::move(base::EpollReactor::create()).value();
    PollSet set_{*reactor_, std::chrono::microseconds(100)};
    std::shared_ptr<CountingMember> one_ = std::make_shared<CountingMember>();
    std::shared_ptr<CountingMember> other_ = std::make_shared<CountingMember>();
};

TEST_F(PollSetTest, WhoPollsServesWhatIsReady) {
    set_.progress();  // nothing was added yet
    const uint64_t id = set_.add(one_->fd(), one_);
    ASSERT_NE(id, 0U);
    ASSERT_NE(set_.add(other_->fd(), other_), 0U);
    set_.progress();
    EXPECT_EQ(one_->served() + other_->served(), 0);
    one_->makeReady();
    set_.progress();
    set_.progress();
    EXPECT_EQ(one_->served(), 1);
    EXPECT_EQ(other_->served(), 0);
    one_->makeReady();
    set_.remove(id, one_->fd());
    set_.progress();
    EXPECT_EQ(one_->served(), 1);
}

TEST_F(PollSetTest, RoomToSendIsLookedForWhenAsked) {
    const uint64_t id = set_.add(one_->fd(), one_);
    int calls = 0;
    class Room final : public PollSet::Member {
      public:
        explicit Room(int& calls) : calls_(calls) {}
        void pollReady() override { ++calls_; }
        void resumeReads() override {}

      private:
        int& calls_;
    };
    const auto member = std::make_shared<Room>(calls);
    set_.remove(id, one_->fd());
    const uint64_t again = set_.add(one_->fd(), member);
    set_.progress();
    EXPECT_EQ(calls, 0);
    set_.lookForRoom(again, one_->fd(), true);  // an eventfd has room always
    set_.progress();
    EXPECT_EQ(calls, 1);
    set_.lookForRoom(again, one_->fd(), false);
    set_.progress();
    EXPECT_EQ(calls, 1);
}

TEST_F(PollSetTest, OnlyWhoComesAgainPolls) {
    ASSERT_NE(set_.add(one_->fd(), one_), 0U);
    EXPECT_FALSE(set_.polled());
    set_.progress();
    set_.progress();
    EXPECT_FALSE(set_.polled()) << "a look or two before going to sleep is no polling";
    const auto until = Clock::now() + seconds(20);
    while (!set_.polled() && Clock::now() < until) {
        set_.progress();
    }
    EXPECT_TRUE(set_.polled());
}

TEST_F(PollSetTest, ThreadsWatchAgainWhenNobodyPolls) {
    ASSERT_NE(set_.add(one_->fd(), one_), 0U);
    for (const auto until = Clock::now() + seconds(20); !set_.polled() && Clock::now() < until;) {
        set_.progress();
    }
    set_.guard();
    EXPECT_TRUE(one_->awaitWatch());  // nobody polls any more
    EXPECT_FALSE(set_.polled());
}

TEST_F(PollSetTest, WhoGoesToSleepGivesBackAtOnce) {
    PollSet set(*reactor_, seconds(100));
    ASSERT_NE(set.add(one_->fd(), one_), 0U);
    for (int i = 0; i < 10; ++i) {
        set.progress();
    }
    ASSERT_TRUE(set.polled());
    set.guard();
    EXPECT_FALSE(one_->resumed());
    set.aboutToSleep();
    EXPECT_TRUE(one_->resumed());
    EXPECT_FALSE(set.polled());
    set.stop();
}

TEST_F(PollSetTest, WhatIsLeftBrieflyComesBackAlsoWhileOthersPoll) {
    PollSet set(*reactor_, seconds(100));
    ASSERT_NE(set.add(other_->fd(), other_), 0U);
    for (int i = 0; i < 10; ++i) {
        set.progress();
    }
    ASSERT_TRUE(set.polled());
    set.leaveBriefly(one_);
    EXPECT_TRUE(one_->awaitWatch());
    EXPECT_FALSE(other_->resumed()) << "that is still polled";
    set.leaveBriefly(std::weak_ptr<PollSet::Member>());  // has ended meanwhile
    set.stop();
}

TEST_F(PollSetTest, NothingIsLeftWhereNothingCanBeLookedAfter) {
    PollSet set(*reactor_, seconds(100));
    for (int i = 0; i < 10; ++i) {
        set.progressed(Clock::now());
    }
    EXPECT_FALSE(set.polled());
    ASSERT_NE(set.add(one_->fd(), one_), 0U);
    EXPECT_TRUE(set.polled());
    set.stop();
}

TEST_F(PollSetTest, WhoSleepsOnADescriptorNeverPolls) {
    PollSet set(*reactor_, seconds(100));
    ASSERT_NE(set.add(one_->fd(), one_), 0U);
    set.sleepOnEvents();
    for (int i = 0; i < 10; ++i) {
        set.progress();
    }
    EXPECT_FALSE(set.polled());
    set.stop();
}

TEST_F(PollSetTest, NobodyIsToldAfterTheStop) {
    ASSERT_NE(set_.add(one_->fd(), one_), 0U);
    set_.stop();
    set_.guard();
    EXPECT_EQ(set_.add(other_->fd(), other_), 0U);
    std::promise<void> later;
    reactor_->startTimer(Clock::now() + 10 * PollSet::kGuardPeriod, [&] { later.set_value(); });
    ASSERT_EQ(later.get_future().wait_for(seconds(20)), std::future_status::ready);
    EXPECT_FALSE(one_->resumed());
}

}  // namespace
}  // namespace nixl::base
