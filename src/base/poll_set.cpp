// See poll_set.h.
#include "base/poll_set.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace nixl::base {

namespace {

constexpr int kServedAtOnce = 8;
// Longer than a caller moves bytes at a time.
constexpr std::chrono::milliseconds kLongHelp{1};

}  // namespace

bool PollSet::open() {
    Fd epoll(epoll_create1(EPOLL_CLOEXEC));
    Fd wanted(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll || !wanted) {
        return false;
    }
    auto watch = reactor_.watch(wanted.get(), EPOLLIN, [this, fd = wanted.get()](uint32_t) {
        uint64_t value = 0;
        static_cast<void>(!read(fd, &value, sizeof(value)));
        startGuard();
    });
    if (!watch.ok()) {
        return false;
    }
    guardWatch_ = watch.value();
    epoll_ = std::move(epoll);
    guardWanted_ = std::move(wanted);
    guardFd_.store(guardWanted_.get(), std::memory_order_release);
    epollFd_.store(epoll_.get(), std::memory_order_release);
    return true;
}

uint64_t PollSet::add(int fd, std::weak_ptr<Member> member) {
    const MutexLock lock(mutex_);
    if (stopped_) {
        return 0;
    }
    if (!epoll_ && !open()) {
        return 0;
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = nextId_;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0) {
        return 0;
    }
    members_.emplace(nextId_, std::move(member));
    return nextId_++;
}

void PollSet::lookForRoom(uint64_t id, int fd, bool room) {
    epoll_event event{};
    event.events = EPOLLIN | (room ? EPOLLOUT : 0U);
    event.data.u64 = id;
    epoll_ctl(epollFd_.load(std::memory_order_acquire), EPOLL_CTL_MOD, fd, &event);
}

void PollSet::remove(uint64_t id, int fd) {
    const MutexLock lock(mutex_);
    if (members_.erase(id) > 0 && epoll_) {
        epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    }
}

void PollSet::countLook(Clock::time_point begin) {
    const int in_row = inRow_.load(std::memory_order_relaxed);
    const bool soon = begin - lastEnd_.load(std::memory_order_relaxed) < distance_;
    inRow_.store(soon ? std::min(in_row + 1, kPolling) : 0, std::memory_order_relaxed);
}

void PollSet::progressed(Clock::time_point begin) {
    countLook(begin);
    lastEnd_.store(Clock::now(), std::memory_order_relaxed);
}

void PollSet::progress() {
    const int epoll_fd = epollFd_.load(std::memory_order_acquire);
    if (epoll_fd < 0) {
        return;
    }
    const auto now = Clock::now();
    lastBegin_.store(now, std::memory_order_relaxed);
    countLook(now);
    progressing_.fetch_add(1, std::memory_order_relaxed);
    std::array<epoll_event, kServedAtOnce> events{};
    const int count = epoll_wait(epoll_fd, events.data(), kServedAtOnce, 0);
    for (int i = 0; i < count; ++i) {
        std::shared_ptr<Member> member;
        {
            const MutexLock lock(mutex_);
            const uint64_t id = events[static_cast<size_t>(i)].data.u64;  // a copy: it is packed
            const auto found = members_.find(id);
            if (found != members_.end()) {
                member = found->second.lock();
            }
        }
        if (member != nullptr) {
            member->pollReady();
        }
    }
    progressing_.fetch_sub(1, std::memory_order_relaxed);
    lastEnd_.store(count > 0 ? Clock::now() : now, std::memory_order_relaxed);
}

bool PollSet::polled() const {
    // Without the set nobody would give back what is left to callers.
    if (inRow_.load(std::memory_order_relaxed) < kPolling ||
        eventDriven_.load(std::memory_order_relaxed) ||
        epollFd_.load(std::memory_order_acquire) < 0) {
        return false;
    }
    const auto now = Clock::now();
    return now - lastEnd_.load(std::memory_order_relaxed) < distance_ ||
           // Who moves much is not away; who has lost its processor is.
           (progressing_.load(std::memory_order_relaxed) > 0 &&
            now - lastBegin_.load(std::memory_order_relaxed) < kLongHelp);
}

void PollSet::startGuard() {
    const MutexLock lock(mutex_);
    if (!stopped_) {
        timer_ = reactor_.startTimer(Clock::now() + kGuardPeriod, [this] { onGuard(); });
    }
}

// What is left is marked before this is called: either the mark is seen by the sweep that ends the
// guarding, or the guarding is begun anew here.
void PollSet::guard() {
    if (!guarding_.exchange(true, std::memory_order_acq_rel)) {
        const uint64_t one = 1;
        static_cast<void>(!write(guardFd_.load(std::memory_order_acquire), &one, sizeof(one)));
    }
}

void PollSet::leaveBriefly(std::weak_ptr<Member> work) {
    {
        const MutexLock lock(mutex_);
        brief_.push_back(std::move(work));
    }
    guard();
}

void PollSet::giveBackBrief() {
    std::vector<std::weak_ptr<Member>> brief;
    {
        const MutexLock lock(mutex_);
        brief.swap(spare_);
        brief.swap(brief_);
    }
    for (const auto& weak : brief) {
        if (const auto work = weak.lock()) {
            work->resumeReads();
        }
    }
    brief.clear();
    const MutexLock lock(mutex_);
    spare_.swap(brief);
}

void PollSet::onGuard() {
    const bool goes_on = polled();
    if (!goes_on) {
        guarding_.exchange(false, std::memory_order_acq_rel);
        return giveBack();
    }
    giveBackBrief();
    startGuard();
}

void PollSet::giveBack() {
    giveBackBrief();
    for (const auto& member : members()) {
        member->resumeReads();
    }
}

void PollSet::aboutToSleep() {
    inRow_.store(0, std::memory_order_relaxed);
    if (guarding_.load(std::memory_order_acquire)) {
        giveBack();
    }
}

std::vector<std::shared_ptr<PollSet::Member>> PollSet::members() {
    std::vector<std::shared_ptr<Member>> all;
    const MutexLock lock(mutex_);
    all.reserve(members_.size());
    for (const auto& [id, weak] : members_) {
        if (auto member = weak.lock()) {
            all.push_back(std::move(member));
        }
    }
    return all;
}

void PollSet::stop() {
    uint64_t timer = 0;
    uint64_t watch = 0;
    {
        const MutexLock lock(mutex_);
        stopped_ = true;
        timer = std::exchange(timer_, 0);
        watch = std::exchange(guardWatch_, 0);
        members_.clear();
    }
    if (timer != 0) {
        reactor_.stopTimer(timer);  // waits for one that runs
    }
    if (watch != 0) {
        reactor_.unwatch(watch);
    }
}

}  // namespace nixl::base
