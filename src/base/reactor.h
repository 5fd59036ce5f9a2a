// The agent's event loop: one thread that waits on epoll for descriptors, timers and tasks, and
// sleeps when nothing moves. Owned by the agent. All calls are thread-safe; in a forked child they
// do nothing, and the destructor leaves the parent's thread alone.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <sys/epoll.h>

#include "nixl/services.h"

#include "base/busy_poll.h"
#include "base/mutex.h"
#include "base/threads.h"

namespace nixl::base {

class EpollReactor final : public Reactor {
  public:
    // `busy_poll`: how long the thread looks again before it sleeps.
    static Result<std::unique_ptr<EpollReactor>> create(std::chrono::microseconds busy_poll = {});
    // Waits for a callback that runs; what has not started does not run any more. Must not be
    // called from a callback.
    ~EpollReactor() override;
    EpollReactor(const EpollReactor&) = delete;
    EpollReactor& operator=(const EpollReactor&) = delete;

    Result<uint64_t> watch(int fd, uint32_t events, std::function<void(uint32_t)> call) override;
    Status modify(uint64_t watch_id, uint32_t events) override;
    void unwatch(uint64_t watch_id) override;
    uint64_t startTimer(Clock::time_point when, std::function<void()> call) override;
    void stopTimer(uint64_t timer_id) override;
    void run(std::function<void()> task) override;
    bool onThread() const override;
    const BusyPoll& busyPoll() const { return busyPoll_; }

  private:
    struct Watch {
        int fd = -1;
        uint32_t events = 0;
        std::function<void(uint32_t)> call;
    };
    using TimerKey = std::pair<Clock::time_point, uint64_t>;

    EpollReactor(int epoll_fd, int wake_fd, std::chrono::microseconds busy_poll);
    void loop();
    int waitForEvents(epoll_event* events, Clock::time_point until);
    int nextEvents(epoll_event* events, Clock::time_point until);
    bool handleEvent(uint64_t id, uint32_t events);
    void renew(bool old_is_there);
    void addStale(uint64_t id);
    void runDueTimers();
    bool runOneTimer(Clock::time_point now, uint64_t first_new);
    void runTasks();
    void finishCall();
    void awaitCall(uint64_t id) NIXL_REQUIRES(mutex_);
    void wake();

    static constexpr int kEventsPerWait = 64;

    int epollFd_;  // changed on the reactor thread, under the lock; others read it under the lock
    std::atomic<int> wakeFd_;
    std::unordered_set<uint64_t> stale_;  // reactor thread: had events when nobody watched them
    const ProcessMark process_;
    BusyPoll busyPoll_;
    std::unique_ptr<std::thread> thread_;  // a pointer, so that a forked child can drop it

    Mutex mutex_;
    // A pointer, since destroying it in a forked child would wait for the parent's waiters.
    std::unique_ptr<std::condition_variable_any> callEnded_ =
        std::make_unique<std::condition_variable_any>();
    uint64_t nextId_ NIXL_GUARDED_BY(mutex_) = 1;
    uint64_t runningId_ NIXL_GUARDED_BY(mutex_) = 0;  // the watch or timer being called
    bool stop_ NIXL_GUARDED_BY(mutex_) = false;
    bool wakePending_ NIXL_GUARDED_BY(mutex_) = false;
    std::unordered_map<uint64_t, std::shared_ptr<Watch>> watches_ NIXL_GUARDED_BY(mutex_);
    std::map<TimerKey, std::function<void()>> timers_ NIXL_GUARDED_BY(mutex_);
    std::unordered_map<uint64_t, Clock::time_point> timerTimes_ NIXL_GUARDED_BY(mutex_);
    std::deque<std::function<void()>> tasks_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::base
