// See reactor.h.
#include "base/reactor.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <utility>
#include <vector>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/system_error.h"

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

namespace nixl::base {

namespace {

// epoll identifies what became ready by this id, never by a pointer, so that an event of a watch
// that has just gone is recognised as such. Ids start at 1: 0 is the wake-up descriptor.
constexpr uint64_t kWakeId = 0;

}  // namespace

Result<std::unique_ptr<EpollReactor>> EpollReactor::create(std::chrono::microseconds busy_poll) {
    const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) {
        return systemError("reactor: epoll_create1", errno);
    }
    const int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kWakeId;
    if (wake_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake_fd, &event) < 0) {
        const int error = errno;
        close(epoll_fd);
        if (wake_fd >= 0) {
            close(wake_fd);
        }
        return systemError("reactor: eventfd", error);
    }
    std::unique_ptr<EpollReactor> reactor(new EpollReactor(epoll_fd, wake_fd, busy_poll));
    auto thread =
        startThread("nixl-reactor", Priority::RESPONSIVE, [self = reactor.get()] { self->loop(); });
    if (!thread.ok()) {
        return thread.status();
    }
    reactor->thread_ = std::make_unique<std::thread>(std::move(thread).value());
    return reactor;
}

EpollReactor::EpollReactor(int epoll_fd, int wake_fd, std::chrono::microseconds busy_poll)
    : epollFd_(epoll_fd), wakeFd_(wake_fd), busyPoll_(busy_poll) {}

EpollReactor::~EpollReactor() {
    if (process_.forked()) {
        // The thread exists in the parent only; forget it without touching it.
        static_cast<void>(thread_.release());     // NOLINT(bugprone-unused-return-value)
        static_cast<void>(callEnded_.release());  // NOLINT(bugprone-unused-return-value)
    } else if (thread_ != nullptr) {
        {
            const MutexLock lock(mutex_);
            stop_ = true;
        }
        wake();
        thread_->join();
    }
    close(epollFd_);
    close(wakeFd_);
}

bool EpollReactor::onThread() const {
    return thread_ != nullptr && std::this_thread::get_id() == thread_->get_id();
}

void EpollReactor::wake() {
    const uint64_t one = 1;
    // Fails only when the counter is at its maximum: then the thread is awake anyway.
    static_cast<void>(!write(wakeFd_, &one, sizeof(one)));
}

Result<uint64_t> EpollReactor::watch(int fd, uint32_t events, std::function<void(uint32_t)> call) {
    if (process_.forked()) {
        return Status::notAllowed("reactor: belongs to the process that forked this one");
    }
    auto entry = std::make_shared<Watch>();
    entry->fd = fd;
    entry->events = events;
    entry->call = std::move(call);
    const MutexLock lock(mutex_);
    const uint64_t id = nextId_++;
    epoll_event event{};
    event.events = events;
    event.data.u64 = id;
    if (epoll_ctl(epollFd_, EPOLL_CTL_ADD, fd, &event) < 0) {
        return systemError("reactor: cannot watch descriptor " + std::to_string(fd), errno);
    }
    watches_.emplace(id, std::move(entry));
    return id;
}

Status EpollReactor::modify(uint64_t watch_id, uint32_t events) {
    if (process_.forked()) {
        return Status::notAllowed("reactor: belongs to the process that forked this one");
    }
    const MutexLock lock(mutex_);
    const auto found = watches_.find(watch_id);
    if (found == watches_.end()) {
        return Status::notFound("reactor: no watch " + std::to_string(watch_id));
    }
    epoll_event event{};
    event.events = events;
    event.data.u64 = watch_id;
    if (epoll_ctl(epollFd_, EPOLL_CTL_MOD, found->second->fd, &event) < 0) {
        return systemError(
            "reactor: cannot change the watch of descriptor " + std::to_string(found->second->fd),
            errno);
    }
    found->second->events = events;
    return {};
}

void EpollReactor::unwatch(uint64_t watch_id) {
    if (process_.forked()) {
        return;
    }
    std::shared_ptr<Watch> gone;  // destroyed after the lock: it may hold anything
    const MutexLock lock(mutex_);
    const auto found = watches_.find(watch_id);
    if (found != watches_.end()) {
        gone = std::move(found->second);
        watches_.erase(found);
        // The owner may have closed it before; then epoll has forgotten it already.
        epoll_ctl(epollFd_, EPOLL_CTL_DEL, gone->fd, nullptr);
    }
    awaitCall(watch_id);
}

uint64_t EpollReactor::startTimer(Clock::time_point when, std::function<void()> call) {
    if (process_.forked()) {
        return UINT64_MAX;
    }
    bool earliest = false;
    uint64_t id = 0;
    {
        const MutexLock lock(mutex_);
        id = nextId_++;
        const auto place = timers_.emplace(TimerKey(when, id), std::move(call)).first;
        timerTimes_.emplace(id, when);
        earliest = place == timers_.begin();
    }
    if (earliest && !onThread()) {
        wake();
    }
    return id;
}

void EpollReactor::stopTimer(uint64_t timer_id) {
    if (process_.forked()) {
        return;
    }
    std::function<void()> gone;
    const MutexLock lock(mutex_);
    const auto found = timerTimes_.find(timer_id);
    if (found != timerTimes_.end()) {
        const auto timer = timers_.find(TimerKey(found->second, timer_id));
        gone = std::move(timer->second);
        timers_.erase(timer);
        timerTimes_.erase(found);
    }
    awaitCall(timer_id);
}

void EpollReactor::run(std::function<void()> task) {
    if (process_.forked()) {
        return;
    }
    bool must_wake = false;
    {
        const MutexLock lock(mutex_);
        tasks_.push_back(std::move(task));
        must_wake = !wakePending_;
        wakePending_ = true;
    }
    if (must_wake) {
        wake();
    }
}

void EpollReactor::awaitCall(uint64_t id) {
    if (!onThread()) {
        while (runningId_ == id) {
            callEnded_->wait(mutex_);
        }
    }
}

void EpollReactor::finishCall() {
    {
        const MutexLock lock(mutex_);
        runningId_ = 0;
    }
    callEnded_->notify_all();
}

// False where nobody watches it: removed by an earlier callback of this round.
bool EpollReactor::handleEvent(uint64_t id, uint32_t events) {
    std::shared_ptr<Watch> entry;
    {
        const MutexLock lock(mutex_);
        const auto found = watches_.find(id);
        if (found == watches_.end()) {
            return false;
        }
        entry = found->second;
        runningId_ = id;
    }
    entry->call(events);
    // The callback's own objects go before anybody who waits in unwatch() continues.
    entry.reset();
    finishCall();
    return true;
}

// A watch that was taken back comes up again: its descriptor had been closed before, so that it
// could not be taken from the set, and a copy of it is open (in a child, say). It would come up for
// ever.
void EpollReactor::addStale(uint64_t id) {
    constexpr size_t kMany = 1024;
    if (!stale_.insert(id).second) {
        renew(true);
    } else if (stale_.size() > kMany) {
        stale_.clear();
    }
}

// Watches everything with a new set. Whoever watches a descriptor that is not open any more is
// told.
void EpollReactor::renew(bool old_is_there) {
    log(LogLevel::WARN, old_is_there ? "reactor: a watched descriptor was closed by somebody else"
                                     : "reactor: its descriptor was closed by somebody else");
    const int fresh = epoll_create1(EPOLL_CLOEXEC);
    if (fresh < 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));  // and tries again
        return;
    }
    const auto add = [fresh](int fd, uint32_t events, uint64_t id) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = id;
        return epoll_ctl(fresh, EPOLL_CTL_ADD, fd, &event) == 0;
    };
    if (!add(wakeFd_, EPOLLIN, kWakeId)) {
        wakeFd_ = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
        add(wakeFd_, EPOLLIN, kWakeId);
    }
    std::vector<uint64_t> closed;
    {
        const MutexLock lock(mutex_);
        for (const auto& [id, entry] : watches_) {
            if (!add(entry->fd, entry->events, id)) {
                closed.push_back(id);
            }
        }
        const int old = std::exchange(epollFd_, fresh);
        if (old_is_there) {
            close(old);
        }
    }
    stale_.clear();
    for (const uint64_t id : closed) {
        handleEvent(id, EPOLLERR | EPOLLHUP);
    }
}

void EpollReactor::runDueTimers() {
    const auto now = Clock::now();
    uint64_t first_new = 0;
    {
        const MutexLock lock(mutex_);
        first_new = nextId_;
    }
    while (runOneTimer(now, first_new)) {
    }
}

// Runs the earliest timer due at `now`, unless it was started in this round (its id is not below
// `first_new`): a timer that starts another at once must not keep the descriptors waiting.
bool EpollReactor::runOneTimer(Clock::time_point now, uint64_t first_new) {
    std::function<void()> call;
    {
        const MutexLock lock(mutex_);
        if (stop_ || timers_.empty()) {
            return false;
        }
        const auto first = timers_.begin();
        if (first->first.first > now || first->first.second >= first_new) {
            return false;
        }
        runningId_ = first->first.second;
        timerTimes_.erase(runningId_);
        call = std::move(first->second);
        timers_.erase(first);
    }
    call();
    call = nullptr;
    finishCall();
    return true;
}

void EpollReactor::runTasks() {
    std::deque<std::function<void()>> tasks;
    {
        const MutexLock lock(mutex_);
        wakePending_ = false;
        tasks.swap(tasks_);
    }
    for (auto& task : tasks) {
        task();
        task = nullptr;
    }
}

int EpollReactor::waitForEvents(epoll_event* events, Clock::time_point until) {
    timespec limit{};
    timespec* limit_pointer = nullptr;
    if (until != Clock::time_point::max()) {
        std::chrono::nanoseconds left{0};
        if (until != Clock::time_point::min()) {
            left = std::max<std::chrono::nanoseconds>(until - Clock::now(), left);
        }
        limit.tv_sec = left.count() / 1'000'000'000;
        limit.tv_nsec = left.count() % 1'000'000'000;
        limit_pointer = &limit;
    }
    const long count =
        syscall(SYS_epoll_pwait2, epollFd_, events, kEventsPerWait, limit_pointer, nullptr, 0);
    if (count >= 0 || (errno != ENOSYS && errno != EPERM)) {
        return static_cast<int>(count);
    }
    // Before Linux 5.11, or filtered by a sandbox: whole milliseconds, rounded up.
    int64_t ms = -1;
    if (limit_pointer != nullptr) {
        ms = limit.tv_sec * 1000 + (limit.tv_nsec + 999'999) / 1'000'000;
    }
    return epoll_wait(epollFd_, events, kEventsPerWait,
                      static_cast<int>(std::min<int64_t>(ms, INT_MAX)));
}

// Looks for as long as busy polling allows, then sleeps.
int EpollReactor::nextEvents(epoll_event* events, Clock::time_point until) {
    int count = 0;
    if (until != Clock::time_point::min()) {
        const bool seen = busyPoll_.spin(until, [&] {
            count = waitForEvents(events, Clock::time_point::min());
            return count != 0;
        });
        if (seen) {
            return count;
        }
        busyPoll_.countSleep();
    }
    return waitForEvents(events, until);
}

void EpollReactor::loop() {
    std::array<epoll_event, kEventsPerWait> events{};
    while (true) {
        Clock::time_point until = Clock::time_point::max();
        {
            const MutexLock lock(mutex_);
            if (stop_) {
                return;
            }
            if (!tasks_.empty()) {
                until = Clock::time_point::min();
            } else if (!timers_.empty()) {
                until = timers_.begin()->first.first;
            }
        }
        const int count = nextEvents(events.data(), until);
        if (count < 0 && errno != EINTR) {
            renew(false);
        }
        for (int i = 0; i < count; ++i) {
            const epoll_event& event = events[static_cast<size_t>(i)];
            if (event.data.u64 == kWakeId) {
                uint64_t value = 0;
                static_cast<void>(!read(wakeFd_, &value, sizeof(value)));
            } else if (const uint64_t id = event.data.u64; !handleEvent(id, event.events)) {
                addStale(id);
            }
        }
        runTasks();
        runDueTimers();
    }
}

}  // namespace nixl::base
