// The work pool and chunked jobs: everything runs once, a stop drops the rest, the end comes once.
#include "base/work_pool.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>

#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/copy_pool.h"

namespace nixl::base {
namespace {

using std::chrono::milliseconds;

TEST(ThreadPool, StartsNothingUntilUsed) {
    ThreadPool pool(3);
    EXPECT_EQ(pool.threads(), 3U);
    EXPECT_EQ(pool.started(), 0U);
    pool.run([] {});
    EXPECT_EQ(pool.started(), 1U);
}

TEST(ThreadPool, DefaultIsBounded) {
    const ThreadPool pool;
    EXPECT_GE(pool.threads(), 1U);
    EXPECT_LE(pool.threads(), ThreadPool::kDefaultLimit);
}

TEST(ThreadPool, RunsEverythingBeforeItEnds) {
    std::atomic<int> count{0};
    {
        ThreadPool pool(2);
        for (int i = 0; i < 1000; ++i) {
            pool.run([&count] { count.fetch_add(1); });
        }
    }
    EXPECT_EQ(count.load(), 1000);
}

TEST(ThreadPool, ThreadsAreBatchOnlyInBulkWorkAndBlockSignals) {
    std::atomic<int> policy{-1};
    std::atomic<int> in_bulk{-1};
    std::atomic<int> after{-1};
    std::atomic<bool> blocked{false};
    {
        ThreadPool pool(1);
        pool.run([&] {
            policy = sched_getscheduler(0);
            {
                const BulkScope scope;
                in_bulk = sched_getscheduler(0);
            }
            after = sched_getscheduler(0);
            sigset_t mask;
            pthread_sigmask(SIG_SETMASK, nullptr, &mask);
            blocked = sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGUSR1) == 1;
        });
    }
    EXPECT_EQ(policy.load(), SCHED_OTHER);
    EXPECT_EQ(in_bulk.load(), SCHED_BATCH);
    EXPECT_EQ(after.load(), SCHED_OTHER);
    const BulkScope scope;
    EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER) << "a thread of the user is left alone";
    EXPECT_TRUE(blocked.load());
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    EXPECT_EQ(sigismember(&mask, SIGUSR1), 0) << "the caller's own mask must be as before";
}

TEST(ThreadPool, DestroyedInForkedChild) {
    auto pool = std::make_unique<ThreadPool>(2);
    pool->run([] {});
    std::this_thread::sleep_for(milliseconds(20));  // sleeps: the worker begins to wait for a task
    const pid_t child = fork();
    if (child == 0) {
        pool->run([] {});
        pool.reset();
        _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(ChunkedJob, EveryChunkOnceThenOneEnd) {
    ThreadPool pool(4);
    for (const uint64_t chunks : {1UL, 2UL, 3UL, 100UL}) {
        std::mutex mutex;
        std::multiset<uint64_t> seen;
        std::atomic<int> ends{0};
        auto job = ChunkedJob::create(
            chunks,
            [&](uint64_t index) {
                const std::lock_guard<std::mutex> lock(mutex);
                seen.insert(index);
                return true;
            },
            [&] { ends.fetch_add(1); });
        job->start(pool, 4, false);
        while (job->progress()) {
        }
        while (ends.load() == 0) {
            std::this_thread::yield();
        }
        EXPECT_TRUE(job->finished());
        EXPECT_EQ(seen.size(), chunks);
        EXPECT_EQ(std::set<uint64_t>(seen.begin(), seen.end()).size(), chunks);
        EXPECT_EQ(ends.load(), 1);
    }
}

TEST(ChunkedJob, FailureDropsTheRest) {
    int done = 0;
    int ends = 0;
    auto job = ChunkedJob::create(
        10,
        [&](uint64_t index) {
            ++done;
            return index < 3;
        },
        [&] { ++ends; });
    while (job->progress()) {
    }
    EXPECT_EQ(done, 4);
    EXPECT_EQ(ends, 1);
    EXPECT_TRUE(job->finished());
    job->stop();
    EXPECT_EQ(ends, 1);
}

TEST(ChunkedJob, StopWaitsForTheChunkThatRuns) {
    ThreadPool pool(1);
    std::atomic<bool> inside{false};
    std::atomic<bool> go{false};
    std::atomic<int> ends{0};
    auto job = ChunkedJob::create(
        5,
        [&](uint64_t) {
            inside = true;
            while (!go) {
                std::this_thread::yield();
            }
            return true;
        },
        [&] { ends.fetch_add(1); });
    job->start(pool, 1, false);
    while (!inside) {
        std::this_thread::yield();
    }
    job->stop();
    EXPECT_EQ(ends.load(), 0) << "a chunk is still running";
    go = true;
    while (ends.load() == 0) {
        std::this_thread::yield();
    }
    EXPECT_FALSE(job->progress());
}

TEST(ChunkedJob, StopRacesWithWorkers) {
    ThreadPool pool(2);
    for (int round = 0; round < 500; ++round) {
        auto ends = std::make_shared<std::atomic<int>>(0);
        auto job =
            ChunkedJob::create(8, [](uint64_t) { return true; }, [ends] { ends->fetch_add(1); });
        job->start(pool, 2, false);
        job->stop();
        while (!job->finished() || ends->load() == 0) {
            std::this_thread::yield();
        }
        EXPECT_EQ(ends->load(), 1);
    }
}

}  // namespace
}  // namespace nixl::base
