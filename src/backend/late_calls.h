// Calls made later by one thread, for injected delays. Owned by the fault wrapper; thread-safe.
// The destructor makes what is left at once. In a forked child nothing is called.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <thread>

#include "base/mutex.h"
#include "base/threads.h"

namespace nixl::backend {

class LateCalls {
  public:
    using Clock = std::chrono::steady_clock;

    LateCalls() = default;
    ~LateCalls();
    LateCalls(const LateCalls&) = delete;
    LateCalls& operator=(const LateCalls&) = delete;

    // Where no thread can be started the call is made at once.
    void call(Clock::time_point when, std::function<void()> what);

  private:
    void loop();
    bool runDue(bool all);

    const base::ProcessMark process_;
    Mutex mutex_;
    // Pointers, so that a forked child can leave them alone.
    std::unique_ptr<std::condition_variable_any> changed_ =
        std::make_unique<std::condition_variable_any>();
    std::unique_ptr<std::thread> thread_ NIXL_GUARDED_BY(mutex_);
    std::multimap<Clock::time_point, std::function<void()>> calls_ NIXL_GUARDED_BY(mutex_);
    bool stop_ NIXL_GUARDED_BY(mutex_) = false;
};

}  // namespace nixl::backend
