// Forks while other threads hold the locks of the process.
#include "base/fork.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nixl::base {
namespace {

// The exit status of a child that runs `body`; it is killed where that takes 20 s.
int inChild(const std::function<bool()>& body) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(body() ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return status;
}

TEST(ProcessLocks, AreFreeInAForkedChild) {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (size_t i = 0; i < static_cast<size_t>(ProcessLock::COUNT); ++i) {
        threads.emplace_back([&stop, i] {
            while (!stop.load()) {
                {
                    const MutexLock held(processMutex(static_cast<ProcessLock>(i)));
                    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // sleeps: holds it
                }
                std::this_thread::sleep_for(std::chrono::microseconds(50));  // sleeps: unfair
            }
        });
    }
    int status = 0;
    for (int round = 0; round < 20 && status == 0; ++round) {
        status = inChild([] {
            for (size_t i = 0; i < static_cast<size_t>(ProcessLock::COUNT); ++i) {
                const MutexLock lock(processMutex(static_cast<ProcessLock>(i)));
            }
            return true;
        });
    }
    EXPECT_EQ(status, 0);
    stop = true;
    for (std::thread& thread : threads) {
        thread.join();
    }
}

TEST(ProcessLocks, TheEpochOfAChildIsAnother) {
    const uint64_t here = forkEpoch();
    EXPECT_EQ(inChild([here] { return forkEpoch() != here; }), 0);
    EXPECT_EQ(forkEpoch(), here);
}

}  // namespace
}  // namespace nixl::base
