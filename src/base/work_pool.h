// The agent's few threads for copies and other long work, started when first used. Owned by the
// agent. All calls are thread-safe. In a forked child tasks are dropped: its agents are dead.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "nixl/services.h"

#include "base/mutex.h"
#include "base/threads.h"

namespace nixl::base {

class ThreadPool final : public WorkPool {
  public:
    // 0 threads: as many as there are processors to run on, at most kDefaultLimit.
    explicit ThreadPool(unsigned threads = 0);
    // Runs what is queued, then ends. Must not be called from a task.
    ~ThreadPool() override;
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    unsigned threads() const override { return wanted_; }
    // Where not even one thread can be started the task runs in the caller.
    void run(std::function<void()> task) override;
    // For tests and agent.stats().
    size_t started() const;

    static constexpr unsigned kDefaultLimit = 4;

  private:
    bool startOne() NIXL_REQUIRES(mutex_);
    void loop();

    const unsigned wanted_;
    const ProcessMark process_;
    mutable Mutex mutex_;
    // A pointer, since destroying it in a forked child would wait for the parent's waiters.
    std::unique_ptr<std::condition_variable_any> changed_ =
        std::make_unique<std::condition_variable_any>();
    std::deque<std::function<void()>> tasks_ NIXL_GUARDED_BY(mutex_);
    unsigned idle_ NIXL_GUARDED_BY(mutex_) = 0;
    bool stop_ NIXL_GUARDED_BY(mutex_) = false;
    std::unique_ptr<std::vector<std::thread>> running_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::base
