// See progress.h.
#include "agent/progress.h"

#include "base/threads.h"

namespace nixl::agent {

Status ProgressThread::start() {
    Result<std::thread> thread =
        base::startThread("nixl-progress", base::Priority::RESPONSIVE, [this] { loop(); });
    if (!thread.ok()) {
        return thread.status();
    }
    thread_ = std::move(thread).value();
    return {};
}

void ProgressThread::loop() {
    for (;;) {
        // Read before asking to stop: a wake that comes later ends the wait below.
        const uint32_t seen = wakes_.load(std::memory_order_acquire);
        if (stop_.load(std::memory_order_acquire)) {
            return;
        }
        const bool busy = step_();
        // 50 us between steps costs under 1 % of a core and adds little to a device's latency;
        // callers who wait drive their own transfer besides.
        const auto limit =
            busy ? base::deadlineAfter(std::chrono::microseconds(50)) : base::kNoDeadline;
        base::futexWait(wakes_, seen, limit);
    }
}

void ProgressThread::wake() {
    wakes_.fetch_add(1, std::memory_order_release);
    base::futexWakeAll(wakes_);
}

void ProgressThread::stop() {
    if (thread_.joinable()) {
        stop_.store(true, std::memory_order_release);
        wake();
        thread_.join();
    }
}

}  // namespace nixl::agent
