// How long somebody who waits looks again before going to sleep, and how often. Thread-safe.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "base/futex.h"

namespace nixl::base {

class BusyPoll {
  public:
    explicit BusyPoll(std::chrono::microseconds limit) : limit_(limit) {}

    // Calls `look` until it returns true, for as long as the limit says, but not beyond `deadline`.
    // Returns what it returned last; false at once where the limit is 0.
    template <typename Look>
    bool spin(Deadline deadline, Look&& look) {
        if (limit_.count() == 0) {
            return false;
        }
        const Deadline end = std::min(deadline, std::chrono::steady_clock::now() + limit_);
        bool seen = false;
        do {
            spins_.fetch_add(1, std::memory_order_relaxed);
            seen = look();
        } while (!seen && std::chrono::steady_clock::now() < end);
        return seen;
    }
    // Say so before going to sleep.
    void countSleep() { sleeps_.fetch_add(1, std::memory_order_relaxed); }

    bool enabled() const { return limit_.count() != 0; }
    uint64_t spins() const { return spins_.load(std::memory_order_relaxed); }
    uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }

  private:
    const std::chrono::microseconds limit_;
    std::atomic<uint64_t> spins_{0};
    std::atomic<uint64_t> sleeps_{0};
};

}  // namespace nixl::base
