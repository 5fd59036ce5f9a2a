// Posting, taking ends and watching; see inline_queue.h.
#include "inline_queue.h"

#include <cerrno>
#include <chrono>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "job.h"
#include "loop_engine.h"

namespace nixl::posix {

namespace {

constexpr auto kTick = std::chrono::microseconds(500);  // how long one who polls may pause
constexpr uint64_t kPolling = 8;  // looks in a tick; one who is about to sleep looks once or twice
constexpr int kLingerMs = 4;      // the watcher stays awake so long after the last end

}  // namespace

InlineQueue::~InlineQueue() {
    if (event_ >= 0) {
        close(event_);
    }
}

void InlineQueue::open(Engine::OpenInline open) {
    const std::lock_guard lock(mutex_);
    if (opened_ || event_ >= 0) {
        return;
    }
    event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue_ = event_ < 0 ? nullptr : open(kEntries, event_);
    if (queue_ == nullptr) {
        return;
    }
    for (unsigned i = kEntries; i > 0; --i) {
        free_.push_back(i - 1);
    }
    ended_ = startThread("nixl-posix-look", [this] { watch(); }, thread_) != 0;
    opened_ = !ended_;
}

bool InlineQueue::post(Part& part) {
    if (!opened_.load(std::memory_order_acquire)) {
        return false;
    }
    bool submitted = false;
    {
        const std::unique_lock lock(queueMutex_, std::try_to_lock);
        if (!lock || free_.size() < kRequests) {
            return false;
        }
        submitted = submit(part);
    }
    if (submitted) {
        wakeWatcher();
    }
    return true;
}

// True where the kernel took something. REQUIRES: queueMutex_ is held.
bool InlineQueue::submit(Part& part) {
    std::array<IoRequest*, kRequests> requests{};
    std::array<unsigned, kRequests> entries{};
    for (size_t i = 0; i < kRequests; ++i) {
        entries[i] = free_[free_.size() - 1 - i];
        requests[i] = &requests_[entries[i]];
    }
    size_t taken = 0;
    part.begin(requests, [&](size_t count) {
        // Counted first: who takes the ends may be faster than this thread.
        inFlight_.fetch_add(static_cast<unsigned>(count));
        taken = queue_->submit({requests.data(), count}, {entries.data(), count});
        inFlight_.fetch_sub(static_cast<unsigned>(count - taken));
        free_.resize(free_.size() - count);
        for (size_t i = taken; i < count; ++i) {
            scheduler_.handBack(*requests[i]);
            free_.push_back(entries[i]);
        }
    });
    return taken > 0;
}

bool InlineQueue::progress() {
    if (!busy()) {
        return false;
    }
    polls_.fetch_add(1, std::memory_order_relaxed);
    return queue_->ended() && take(true);
}

bool InlineQueue::take(bool try_only) {
    std::array<KernelEnd, kRequests> ends;
    size_t count = 0;
    {
        std::unique_lock lock(queueMutex_, std::defer_lock);
        if (try_only ? !lock.try_lock() : (lock.lock(), false)) {
            return false;
        }
        count = queue_->reap(ends);
    }
    for (size_t i = 0; i < count; ++i) {
        finish(requests_[ends[i].entry], ends[i].result);
        {
            const std::lock_guard lock(queueMutex_);
            free_.push_back(ends[i].entry);
        }
        inFlight_.fetch_sub(1);
    }
    return count > 0;
}

void InlineQueue::finish(IoRequest& request, int64_t result) {
    // What the kernel would have to wait for, or gave up since the poster's thread has ended.
    const bool later = result == -EAGAIN || result == -EOPNOTSUPP ||
                       (result == -ECANCELED && !scheduler_.abandoned(request));
    if (later || scheduler_.complete(request, result)) {
        scheduler_.handBack(request);
    }
}

void InlineQueue::wakeWatcher() {
    const Watch now = state_.load();
    if (now == Watch::WATCHES || (now == Watch::TICKS && expectPolls_.load())) {
        return;
    }
    const std::lock_guard lock(mutex_);
    changed_.notify_one();
}

void InlineQueue::ring() const {
    const uint64_t one = 1;
    while (write(event_, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

bool InlineQueue::stop(double seconds) {
    std::unique_lock lock(mutex_);
    if (!opened_.exchange(false)) {
        return true;
    }
    stop_ = true;
    changed_.notify_all();
    ring();
    const bool ended =
        changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return ended_; });
    lock.unlock();
    ended ? pthread_join(thread_, nullptr) : pthread_detach(thread_);
    return ended;
}

// Sleeps in the kernel until something ends, and takes it unless somebody polls. False where
// nothing came for a while.
bool InlineQueue::watchOnce(std::unique_lock<std::mutex>& lock) {
    state_ = Watch::WATCHES;
    const bool idle = inFlight_.load() == 0;
    const uint64_t before = polls_.load();
    lock.unlock();
    std::array<pollfd, 2> descriptors{pollfd{event_, POLLIN, 0},
                                      pollfd{queue_->waitFd(), POLLIN, 0}};
    const int ready = poll(descriptors.data(), descriptors.size(), idle ? kLingerMs : -1);
    lock.lock();
    if (polls_.load() - before >= kPolling && !stop_) {
        expectPolls_ = true;
        return true;
    }
    expectPolls_ = false;
    lock.unlock();
    uint64_t count = 0;
    while (descriptors[0].revents != 0 && read(event_, &count, sizeof(count)) < 0 &&
           errno == EINTR) {
    }
    while (take(false)) {  // until nothing is left: the event is used up
    }
    lock.lock();
    return ready > 0 || !idle;
}

void InlineQueue::watch() {
    std::unique_lock lock(mutex_);
    while (!stop_ || inFlight_.load() > 0) {
        if (expectPolls_.load() && !stop_) {
            // Sleeping in the kernel would mean to be woken at each end that the poller takes, and
            // to push it off its processor.
            const uint64_t before = polls_.load();
            state_ = Watch::TICKS;
            changed_.wait_for(lock, kTick);
            if (polls_.load() - before >= kPolling) {
                continue;
            }
        }
        if (!watchOnce(lock) && !stop_) {
            state_ = Watch::SLEEPS;
            if (inFlight_.load() == 0) {
                changed_.wait(lock);
            }
        }
    }
    ended_ = true;
    changed_.notify_all();
}

}  // namespace nixl::posix
