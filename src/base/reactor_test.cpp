// The reactor: descriptors, timers and tasks are called on its thread; removal is synchronous.
#include "base/reactor.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <future>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"

namespace nixl::base {
namespace {

using std::chrono::milliseconds;
using Clock = Reactor::Clock;

class ReactorTest : public testing::Test {
  protected:
    void SetUp() override {
        auto made = EpollReactor::create();
        ASSERT_TRUE(made.ok()) << made.status().message();
        reactor_ = std::move(made).value();
        ASSERT_EQ(pipe(pipe_), 0);
    }
    void TearDown() override {
        reactor_.reset();
        close(pipe_[0]);
        close(pipe_[1]);
    }
    void drain() {
        std::promise<void> ran;
        reactor_->run([&ran] { ran.set_value(); });
        ran.get_future().wait();
    }

    std::unique_ptr<EpollReactor> reactor_;
    int pipe_[2] = {-1, -1};
};

TEST_F(ReactorTest, TasksRunInOrderOnTheThread) {
    std::vector<int> order;
    bool on_thread = false;
    for (int i = 0; i < 100; ++i) {
        reactor_->run([&, i] { order.push_back(i); });
    }
    reactor_->run([&] { on_thread = reactor_->onThread(); });
    drain();
    ASSERT_EQ(order.size(), 100U);
    EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
    EXPECT_TRUE(on_thread);
    EXPECT_FALSE(reactor_->onThread());
}

TEST_F(ReactorTest, WatchCallsWithEvents) {
    std::promise<uint32_t> got;
    auto id = reactor_->watch(pipe_[0], EPOLLIN, [&](uint32_t events) {
        char byte = 0;
        EXPECT_EQ(read(pipe_[0], &byte, 1), 1);
        got.set_value(events);
    });
    ASSERT_TRUE(id.ok());
    EXPECT_NE(id.value(), 0U);
    ASSERT_EQ(write(pipe_[1], "x", 1), 1);
    EXPECT_EQ(got.get_future().get(), static_cast<uint32_t>(EPOLLIN));
    reactor_->unwatch(id.value());
}

TEST_F(ReactorTest, BadDescriptorIsAnError) {
    auto id = reactor_->watch(-1, EPOLLIN, [](uint32_t) {});
    EXPECT_FALSE(id.ok());
    EXPECT_EQ(id.status().systemErrno(), EBADF);
    EXPECT_EQ(reactor_->modify(12345, EPOLLIN).code(), ErrorCode::NOT_FOUND);
    reactor_->unwatch(12345);
    reactor_->stopTimer(12345);
}

TEST_F(ReactorTest, UnwatchWaitsForTheCallback) {
    std::atomic<bool> inside{false};
    std::atomic<bool> left{false};
    auto id = reactor_->watch(pipe_[0], EPOLLIN, [&](uint32_t) {
        inside = true;
        std::this_thread::sleep_for(milliseconds(20));  // sleeps: who does not wait is through now
        left = true;
    });
    ASSERT_TRUE(id.ok());
    ASSERT_EQ(write(pipe_[1], "x", 1), 1);
    while (!inside) {
        std::this_thread::yield();
    }
    reactor_->unwatch(id.value());
    EXPECT_TRUE(left);
    left = false;
    drain();
    EXPECT_FALSE(left) << "called after unwatch";
}

TEST_F(ReactorTest, CallbackMayUnwatchItself) {
    std::atomic<int> calls{0};
    std::atomic<uint64_t> id{0};
    std::promise<void> first;
    auto made = reactor_->watch(pipe_[0], EPOLLIN, [&](uint32_t) {
        reactor_->unwatch(id);
        if (++calls == 1) {
            first.set_value();
        }
    });
    id = made.value();
    ASSERT_EQ(write(pipe_[1], "x", 1), 1);
    first.get_future().wait();
    drain();
    drain();
    EXPECT_EQ(calls, 1);
}

TEST_F(ReactorTest, ModifyChangesInterest) {
    std::promise<void> writable;
    auto id = reactor_->watch(pipe_[1], 0, [&](uint32_t events) {
        EXPECT_TRUE(events & EPOLLOUT);
        EXPECT_TRUE(reactor_->modify(reactor_->startTimer(Clock::now(), [] {}), 0).code() ==
                    ErrorCode::NOT_FOUND);
        writable.set_value();
    });
    drain();
    ASSERT_TRUE(reactor_->modify(id.value(), EPOLLOUT | EPOLLONESHOT).ok());
    writable.get_future().wait();
    reactor_->unwatch(id.value());
}

TEST_F(ReactorTest, TimersRunInOrderOfTime) {
    std::vector<int> order;
    std::promise<void> last;
    const auto now = Clock::now();
    // Inside a callback none of them runs before all are set, however slow the machine is.
    reactor_->startTimer(now, [&] {
        reactor_->startTimer(now + milliseconds(20), [&] {
            order.push_back(3);
            last.set_value();
        });
        reactor_->startTimer(now + milliseconds(10), [&] { order.push_back(2); });
        reactor_->startTimer(now - milliseconds(10), [&] { order.push_back(1); });
        reactor_->stopTimer(
            reactor_->startTimer(now + milliseconds(5), [&] { order.push_back(9); }));
    });
    last.get_future().wait();
    EXPECT_GE(Clock::now(), now + milliseconds(20));
    EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST_F(ReactorTest, StopTimerWaitsForTheCallback) {
    std::atomic<bool> inside{false};
    std::atomic<bool> left{false};
    const uint64_t id = reactor_->startTimer(Clock::now(), [&] {
        inside = true;
        std::this_thread::sleep_for(milliseconds(20));  // sleeps: who does not wait is through now
        left = true;
    });
    while (!inside) {
        std::this_thread::yield();
    }
    reactor_->stopTimer(id);
    EXPECT_TRUE(left);
}

TEST_F(ReactorTest, EndlessTimerDoesNotStarveTasks) {
    std::atomic<bool> go_on{true};
    std::function<void()> again = [&] {
        if (go_on) {
            reactor_->startTimer(Clock::now() - milliseconds(1), again);
        }
    };
    reactor_->startTimer(Clock::now(), again);
    drain();
    go_on = false;
    drain();
}

// Who closes a descriptor of another's: the reactor goes on with another set, and tells those whose
// descriptors are gone too.
TEST_F(ReactorTest, GoesOnWhenItsSetWasClosed) {
    std::promise<uint32_t> told;
    ASSERT_TRUE(
        reactor_->watch(pipe_[0], EPOLLIN, [&](uint32_t events) { told.set_value(events); }).ok());
    int found = -1;
    for (int fd = 3; fd < 1024; ++fd) {
        char name[64] = {};
        const std::string link = "/proc/self/fd/" + std::to_string(fd);
        if (readlink(link.c_str(), name, sizeof(name) - 1) > 0 &&
            std::string(name) == "anon_inode:[eventpoll]") {
            ASSERT_EQ(found, -1) << "there is another";
            found = fd;
        }
    }
    ASSERT_GE(found, 0);
    close(pipe_[0]);
    close(found);
    drain();
    auto answer = told.get_future();
    ASSERT_EQ(answer.wait_for(std::chrono::seconds(20)), std::future_status::ready);
    EXPECT_EQ(answer.get(), static_cast<uint32_t>(EPOLLERR | EPOLLHUP));
    int other[2];
    ASSERT_EQ(pipe(other), 0);
    std::promise<void> seen;
    const auto watch = reactor_->watch(other[0], EPOLLIN, [&](uint32_t) {
        char byte = 0;
        EXPECT_EQ(read(other[0], &byte, 1), 1);
        seen.set_value();
    });
    ASSERT_TRUE(watch.ok()) << watch.status().message();
    ASSERT_EQ(write(other[1], "x", 1), 1);
    EXPECT_EQ(seen.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
    reactor_->unwatch(watch.value());
    close(other[1]);
    pipe_[0] = other[0];
}

std::promise<void>& said() {
    static std::promise<void> promise;
    return promise;
}

// A copy of it is open elsewhere, so the set would report it for ever.
TEST_F(ReactorTest, ADescriptorClosedBeforeItIsUnwatchedIsNoticed) {
    base::setLogSink([](LogLevel, std::string_view line) {
        if (line.find("closed by somebody else") != std::string_view::npos) {
            said().set_value();
        }
    });
    const int copy = dup(pipe_[0]);
    const auto watch = reactor_->watch(pipe_[0], EPOLLIN, [](uint32_t) {});
    ASSERT_TRUE(watch.ok());
    close(pipe_[0]);
    reactor_->unwatch(watch.value());
    ASSERT_EQ(write(pipe_[1], "x", 1), 1);
    EXPECT_EQ(said().get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
    base::setLogSink(nullptr);
    pipe_[0] = copy;
    drain();
}

TEST_F(ReactorTest, SleepsWhenIdle) {
    drain();
    clockid_t clock{};
    reactor_->startTimer(Clock::now() + std::chrono::hours(1), [] {});
    std::promise<void> got;
    reactor_->run([&] {
        pthread_getcpuclockid(pthread_self(), &clock);
        got.set_value();
    });
    got.get_future().wait();
    timespec before{};
    timespec after{};
    clock_gettime(clock, &before);
    std::this_thread::sleep_for(milliseconds(100));  // sleeps: idleness is what is measured
    clock_gettime(clock, &after);
    const int64_t used =
        (after.tv_sec - before.tv_sec) * 1'000'000'000LL + (after.tv_nsec - before.tv_nsec);
    EXPECT_LT(used, 50'000'000) << "the idle reactor spins";
}

TEST_F(ReactorTest, EndsWithWorkLeft) {
    reactor_->startTimer(Clock::now() + std::chrono::hours(1), [] { FAIL(); });
    ASSERT_TRUE(reactor_->watch(pipe_[0], EPOLLIN, [](uint32_t) {}).ok());
    ASSERT_EQ(write(pipe_[1], "x", 1), 1);  // level-triggered: the callback runs all the time
    reactor_.reset();
}

TEST_F(ReactorTest, ForkedChildLeavesTheParentAlone) {
    std::atomic<int> calls{0};
    auto id = reactor_->watch(pipe_[0], EPOLLIN, [&](uint32_t) {
        char byte = 0;
        EXPECT_EQ(read(pipe_[0], &byte, 1), 1);
        ++calls;
    });
    const pid_t child = fork();
    if (child == 0) {
        reactor_->unwatch(id.value());  // must not take the parent's watch away
        reactor_->run([] {});
        const bool refused = !reactor_->watch(pipe_[1], EPOLLOUT, [](uint32_t) {}).ok();
        reactor_.reset();
        _exit(refused ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ASSERT_EQ(write(pipe_[1], "x", 1), 1);
    while (calls == 0) {
        std::this_thread::yield();
    }
    reactor_->unwatch(id.value());
}

TEST_F(ReactorTest, ManyThreadsAtOnce) {
    std::atomic<int> count{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 200; ++i) {
                const uint64_t timer = reactor_->startTimer(Clock::now(), [&] { ++count; });
                reactor_->run([&] { ++count; });
                reactor_->stopTimer(timer);
                const int own = dup(pipe_[0]);
                auto id = reactor_->watch(own, EPOLLIN, [](uint32_t) {});
                EXPECT_TRUE(id.ok());
                reactor_->unwatch(id.value());
                close(own);
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    drain();
    EXPECT_GE(count, 800);
}

}  // namespace
}  // namespace nixl::base
