// Turns to connect: how many there are, in which order they come, and what becomes of those whose
// reactor has gone.
#include "exchange_tcp/connect_turns.h"

#include <deque>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nixl::exchange_tcp {
namespace {

class FakeReactor final : public Reactor {
  public:
    void run(std::function<void()> task) override { tasks.push_back(std::move(task)); }
    Result<uint64_t> watch(int, uint32_t, std::function<void(uint32_t)>) override {
        return Status::notSupported("");
    }
    Status modify(uint64_t, uint32_t) override { return {}; }
    void unwatch(uint64_t) override {}
    uint64_t startTimer(Clock::time_point, std::function<void()>) override { return 0; }
    void stopTimer(uint64_t) override {}
    bool onThread() const override { return true; }

    void runAll() {
        while (!tasks.empty()) {
            const auto task = std::move(tasks.front());
            tasks.pop_front();
            task();
        }
    }
    std::deque<std::function<void()>> tasks;
};

class ConnectTurnsTest : public testing::Test {
  protected:
    void ask(int who) {
        ConnectTurns::ask(gate_, [this, who](ConnectTurns::Turn turn) {
            order_.push_back(who);
            held_.push_back(std::move(turn));
        });
    }
    void askAll() {
        for (size_t i = 0; i < ConnectTurns::kMost; ++i) {
            ask(0);
        }
    }

    FakeReactor reactor_;
    const std::shared_ptr<ReactorGate> gate_ = std::make_shared<ReactorGate>(reactor_);
    std::vector<int> order_;
    std::deque<ConnectTurns::Turn> held_;
};

TEST_F(ConnectTurnsTest, TheRestWaitInLine) {
    askAll();
    EXPECT_EQ(order_.size(), ConnectTurns::kMost);
    ask(1);
    ask(2);
    reactor_.runAll();
    EXPECT_EQ(order_.size(), ConnectTurns::kMost);
    held_.pop_front();
    EXPECT_EQ(order_.size(), ConnectTurns::kMost);  // not in the middle of whoever ends a turn
    reactor_.runAll();
    ASSERT_EQ(order_.size(), ConnectTurns::kMost + 1);
    EXPECT_EQ(order_.back(), 1);
    held_.pop_front();
    reactor_.runAll();
    EXPECT_EQ(order_.back(), 2);
}

TEST_F(ConnectTurnsTest, ATurnOfAReactorThatHasGoneIsTheNextOnes) {
    FakeReactor other;
    const auto gone = std::make_shared<ReactorGate>(other);
    askAll();
    ConnectTurns::ask(gone, [](const ConnectTurns::Turn&) { FAIL() << "its reactor has gone"; });
    ConnectTurns::ask(gate_, [](const ConnectTurns::Turn&) {});  // lets go of it at once
    ask(3);
    gone->close();
    held_.pop_front();
    reactor_.runAll();
    EXPECT_EQ(order_.back(), 3);
    EXPECT_TRUE(other.tasks.empty());
}

TEST_F(ConnectTurnsTest, ATurnThatIsDroppedUnusedIsTheNextOnes) {
    askAll();
    ask(4);
    ask(5);
    held_.pop_front();
    ASSERT_EQ(reactor_.tasks.size(), 1U);
    std::exchange(reactor_.tasks, {}).clear();  // a reactor that ends with work in its queue
    reactor_.runAll();
    EXPECT_EQ(order_.back(), 5);
}

TEST_F(ConnectTurnsTest, AForkedChildBeginsWithAllFree) {
    askAll();
    ask(6);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        bool went = false;
        ConnectTurns::ask(gate_, [&](const ConnectTurns::Turn&) { went = true; });
        held_.clear();  // turns of the parent
        _exit(went && order_.size() == ConnectTurns::kMost ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    held_.pop_front();
    reactor_.runAll();
    EXPECT_EQ(order_.back(), 6);
}

}  // namespace
}  // namespace nixl::exchange_tcp
