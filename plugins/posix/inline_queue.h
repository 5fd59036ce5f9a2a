// Small O_DIRECT transfers without a thread in their way: whoever posts submits them to a kernel
// queue of their own, and whoever polls takes their ends. A watcher takes those that nobody polls
// for; it sleeps in the kernel, and where callers poll it only looks after them now and then.
//
// Threads: post() and progress() from any thread; the rest as said.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <pthread.h>

#include "engine.h"

namespace nixl::posix {

class Part;
class Scheduler;

// The end of one request of a KernelQueue.
struct KernelEnd {
    unsigned entry = 0;
    int64_t result = 0;
};

// One queue of the kernel. One thread at a time, save for ended().
class KernelQueue {
  public:
    virtual ~KernelQueue() = default;
    // Hands requests to the kernel, which holds their files from then on; never waits for a device.
    // How many were taken, from the first on.
    virtual size_t submit(std::span<IoRequest* const> requests,
                          std::span<const unsigned> entries) = 0;
    // Whether something may have ended: cheap.
    virtual bool ended() const = 0;
    // A descriptor that is readable when something has ended; what there is to read is drained.
    virtual int waitFd() const = 0;
    virtual size_t reap(std::span<KernelEnd> ends) = 0;
};

// Null where the system does not permit it. `event` serves those that have no descriptor to wait
// on.
std::unique_ptr<KernelQueue> openAioQueue(unsigned depth, int event);
std::unique_ptr<KernelQueue> openUringQueue(unsigned depth, int event);
// For the engine of io_uring: Linux AIO where that is permitted, else a ring. AIO writes an end
// into its ring of ends right in the interrupt; io_uring does so in the thread that submitted, and
// where another processor takes the device's interrupts that costs an interrupt more.
std::unique_ptr<KernelQueue> openSmallQueue(unsigned depth, int event);

class InlineQueue {
  public:
    static constexpr unsigned kEntries = 64;
    static constexpr size_t kRequests = 8;  // of one post

    explicit InlineQueue(Scheduler& scheduler) : scheduler_(scheduler) {}
    ~InlineQueue();
    InlineQueue(const InlineQueue&) = delete;
    InlineQueue& operator=(const InlineQueue&) = delete;

    // Opens the queue and starts the watcher, once; without them post() takes nothing.
    void open(Engine::OpenInline open);
    // Submits what `part` begins with, for which nothing was done yet; what is left, and what the
    // kernel cannot take without waiting, goes to the scheduler. False: nothing was begun.
    bool post(Part& part);
    // Takes what has ended; true if that was something.
    bool progress();
    bool busy() const { return inFlight_.load(std::memory_order_relaxed) > 0; }
    // Ends the watcher. False where that took longer than `seconds`: see Engine::stop.
    bool stop(double seconds);

  private:
    enum class Watch : uint8_t { SLEEPS, TICKS, WATCHES };

    bool submit(Part& part);
    bool take(bool try_only);
    void finish(IoRequest& request, int64_t result);
    void wakeWatcher();
    void ring() const;
    void watch();
    bool watchOnce(std::unique_lock<std::mutex>& lock);

    Scheduler& scheduler_;
    std::unique_ptr<KernelQueue> queue_;
    int event_ = -1;
    std::atomic<bool> opened_{false};
    std::atomic<unsigned> inFlight_{0};
    std::atomic<uint64_t> polls_{0};
    std::atomic<bool> expectPolls_{false};  // somebody polled lately; set by the watcher

    std::mutex queueMutex_;  // guards queue_ and free_
    std::vector<unsigned> free_;
    std::array<IoRequest, kEntries> requests_;

    std::atomic<Watch> state_{Watch::SLEEPS};
    std::mutex mutex_;  // guards what follows
    std::condition_variable changed_;
    bool stop_ = false;
    bool ended_ = true;
    pthread_t thread_{};
};

}  // namespace nixl::posix
