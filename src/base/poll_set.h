// What callers who poll (get_new_notifs, checking and waiting) look after themselves: the sockets
// of sessions and data connections. While somebody polls, no thread is woken for what comes; when
// nobody does any more, the threads are told to watch again. Owned by the engine; thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "nixl/services.h"

#include "base/descriptor.h"
#include "base/mutex.h"

namespace nixl::base {

class PollSet final : public Pollers {
  public:
    using Member = PolledWork;

    // How often it is looked whether somebody still does, so at most how late the threads are.
    static constexpr std::chrono::microseconds kGuardPeriod{200};

    // Who polls comes again within `distance`.
    PollSet(Reactor& reactor, std::chrono::microseconds distance)
        : reactor_(reactor), distance_(distance) {}
    // REQUIRES: stop() has been called, or nothing was added.
    ~PollSet() override = default;
    PollSet(const PollSet&) = delete;
    PollSet& operator=(const PollSet&) = delete;

    uint64_t add(int fd, std::weak_ptr<Member> member) override;
    // Looks for room to send too, or no more.
    void lookForRoom(uint64_t id, int fd, bool room);
    void remove(uint64_t id, int fd) override;

    void progress() override;
    void progressed(std::chrono::steady_clock::time_point begin) override;
    // A caller looks no more, but sleeps until it is woken: from now on that is the threads' work.
    void aboutToSleep();
    // Callers sleep on a descriptor between their looks, where nobody is told of it: they never
    // count as polling.
    void sleepOnEvents() { eventDriven_.store(true, std::memory_order_relaxed); }
    bool polled() const override;
    void guard() override;
    // Work that callers do as they poll, but that nobody may poll for: after a guard's period at
    // most it is told to `resumeReads`, whoever polls.
    void leaveBriefly(std::weak_ptr<Member> work);
    // Nobody is called any more when this returns. Not inside a callback of the reactor's other
    // threads.
    void stop();

  private:
    using Clock = std::chrono::steady_clock;
    void countLook(Clock::time_point begin);
    void onGuard();
    void giveBack();
    void giveBackBrief();
    std::vector<std::shared_ptr<Member>> members();
    bool open() NIXL_REQUIRES(mutex_);
    void startGuard();

    Reactor& reactor_;
    const std::chrono::microseconds distance_;
    // So many looks one after the other are polling; one or two are a look before going to sleep.
    static constexpr int kPolling = 4;

    // When callers last began and ended to progress, how many are at it, and how many times in a
    // row one came a moment after the one before.
    std::atomic<Clock::time_point> lastBegin_{Clock::time_point()};
    std::atomic<Clock::time_point> lastEnd_{Clock::time_point()};
    std::atomic<int> progressing_{0};
    std::atomic<int> inRow_{0};
    std::atomic<bool> eventDriven_{false};
    std::atomic<int> epollFd_{-1};  // of epoll_, once there is one
    std::atomic<bool> guarding_{false};

    Mutex mutex_;
    Fd epoll_ NIXL_GUARDED_BY(mutex_);
    Fd guardWanted_ NIXL_GUARDED_BY(mutex_);  // an event: so that guard() allocates nothing
    std::atomic<int> guardFd_{-1};            // of guardWanted_
    uint64_t guardWatch_ NIXL_GUARDED_BY(mutex_) = 0;
    bool stopped_ NIXL_GUARDED_BY(mutex_) = false;
    uint64_t nextId_ NIXL_GUARDED_BY(mutex_) = 1;
    uint64_t timer_ NIXL_GUARDED_BY(mutex_) = 0;
    std::unordered_map<uint64_t, std::weak_ptr<Member>> members_ NIXL_GUARDED_BY(mutex_);
    std::vector<std::weak_ptr<Member>> brief_ NIXL_GUARDED_BY(mutex_);  // left briefly
    std::vector<std::weak_ptr<Member>> spare_
        NIXL_GUARDED_BY(mutex_);  // empty; memory for the next
};

}  // namespace nixl::base
