// A thread for backends that have none: calls their progress() while transfers are in progress,
// sleeps otherwise. Owned by the agent. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

#include "nixl/error.h"

#include "base/futex.h"

namespace nixl::agent {

class ProgressThread {
  public:
    // `step` advances every backend; true while something is in progress.
    explicit ProgressThread(std::function<bool()> step) : step_(std::move(step)) {}
    ProgressThread(const ProgressThread&) = delete;
    ProgressThread& operator=(const ProgressThread&) = delete;
    ~ProgressThread() { stop(); }

    Status start();
    void wake();
    void stop();
    // In a forked child: forgets the thread instead of joining it.
    void abandon() { thread_.detach(); }

  private:
    void loop();

    const std::function<bool()> step_;
    std::atomic<uint32_t> wakes_{0};
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

}  // namespace nixl::agent
