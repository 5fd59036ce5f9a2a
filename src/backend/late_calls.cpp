// See late_calls.h.
#include "backend/late_calls.h"

#include <utility>

namespace nixl::backend {

LateCalls::~LateCalls() {
    if (process_.forked()) {
        [[maybe_unused]] auto* changed = changed_.release();
        [[maybe_unused]] auto* thread = thread_.release();
        return;
    }
    std::unique_ptr<std::thread> thread;
    {
        const MutexLock lock(mutex_);
        stop_ = true;
        thread = std::move(thread_);
    }
    changed_->notify_all();
    if (thread) {
        thread->join();
    }
    while (runDue(true)) {
    }
}

void LateCalls::call(Clock::time_point when, std::function<void()> what) {
    {
        const MutexLock lock(mutex_);
        if (!thread_ && !stop_) {
            auto started =
                base::startThread("nixl-late", base::Priority::NORMAL, [this] { loop(); });
            if (started.ok()) {
                thread_ = std::make_unique<std::thread>(std::move(started).value());
            }
        }
        if (thread_) {
            calls_.emplace(when, std::move(what));
            // With the lock held: once the call is made, its owner may destroy this object.
            changed_->notify_all();
            return;
        }
    }
    what();
}

// Makes one call that is due; false when there is none.
bool LateCalls::runDue(bool all) {
    std::function<void()> what;
    {
        const MutexLock lock(mutex_);
        if (calls_.empty() || (!all && calls_.begin()->first > Clock::now())) {
            return false;
        }
        what = std::move(calls_.begin()->second);
        calls_.erase(calls_.begin());
    }
    what();
    return true;
}

void LateCalls::loop() {
    while (true) {
        while (runDue(false)) {
        }
        const MutexLock lock(mutex_);
        if (stop_) {
            return;
        }
        if (calls_.empty()) {
            changed_->wait(mutex_);
        } else {
            const Clock::time_point until = calls_.begin()->first;
            changed_->wait_until(mutex_, until);
        }
    }
}

}  // namespace nixl::backend
