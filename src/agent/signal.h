// Tells those who wait for "something happened at this agent": a counter to wait on, and a
// descriptor for event loops. All calls are thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/futex.h"
#include "base/mutex.h"

namespace nixl::agent {

class Signal {
  public:
    Signal() = default;
    Signal(const Signal&) = delete;
    Signal& operator=(const Signal&) = delete;
    ~Signal();

    uint32_t count() const noexcept { return count_.load(std::memory_order_seq_cst); }
    void raise() noexcept;
    // Sleeps while count() is `seen`; INTERRUPTED on a signal.
    base::WaitResult wait(uint32_t seen, base::Deadline deadline) noexcept;

    // An eventfd that raise() makes readable until drain(); -1 where none can be made.
    int fileno();
    bool hasFileno() const noexcept { return fd_.load(std::memory_order_acquire) >= 0; }
    void drain() noexcept;

  private:
    std::atomic<uint32_t> count_{0};
    std::atomic<uint32_t> waiters_{0};
    std::atomic<int> fd_{-1};
    Mutex mutex_;
};

}  // namespace nixl::agent
