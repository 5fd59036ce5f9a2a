// Seeing batches end; see watcher.h.
#include "device/watcher.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/prctl.h>
#include <unistd.h>

#include "base/threads.h"

namespace nixl::device {

namespace {

constexpr std::chrono::microseconds kFirstNap{5};
constexpr std::chrono::microseconds kLongestNap{100};

class Watcher {
  public:
    explicit Watcher(pid_t process) : process_(process) {}
    pid_t process() const { return process_; }

    void add(std::shared_ptr<DeviceBatch> batch) {
        {
            const std::lock_guard lock(mutex_);
            if (!started_) {
                Result<std::thread> thread =
                    base::startThread("nixl-device", base::Priority::RESPONSIVE, [this] { run(); });
                if (thread.ok()) {
                    thread.value().detach();
                    started_ = true;
                }
            }
            if (started_) {
                fresh_.push_back(std::move(batch));
                wake_.notify_one();
                return;
            }
        }
        (void)batch->wait();
    }

  private:
    void run() {
        prctl(PR_SET_TIMERSLACK, 1000UL);
        std::vector<std::shared_ptr<DeviceBatch>> pending;
        auto nap = kFirstNap;
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                if (pending.empty()) {
                    wake_.wait(lock, [this] { return !fresh_.empty(); });
                }
                if (!fresh_.empty()) {
                    std::move(fresh_.begin(), fresh_.end(), std::back_inserter(pending));
                    fresh_.clear();
                    nap = kFirstNap;
                }
            }
            const size_t ended =
                std::erase_if(pending, [](const auto& batch) { return batch->poll(); });
            nap = ended > 0 ? kFirstNap : std::min(nap * 2, kLongestNap);
            if (!pending.empty()) {
                std::this_thread::sleep_for(nap);
            }
        }
    }

    const pid_t process_;
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_;
    std::vector<std::shared_ptr<DeviceBatch>> fresh_;
    bool started_ = false;
};

// The process' own; a forked child makes another, since no thread of it is there.
Watcher& watcher() {
    static constinit std::atomic<Watcher*> current{nullptr};
    Watcher* now = current.load(std::memory_order_acquire);
    if (now != nullptr && now->process() == getpid()) {
        return *now;
    }
    auto* const made = new Watcher(getpid());
    if (current.compare_exchange_strong(now, made)) {
        return *made;
    }
    delete made;
    return *now;
}

}  // namespace

void watch(std::shared_ptr<DeviceBatch> batch) {
    watcher().add(std::move(batch));
}

}  // namespace nixl::device
