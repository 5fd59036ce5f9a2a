// See futex.h.
#include "base/futex.h"

#include <cerrno>
#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace nixl::base {

WaitResult futexWait(std::atomic<uint32_t>& word, uint32_t expected, Deadline deadline) {
    timespec limit{};
    timespec* limit_pointer = nullptr;
    if (deadline != kNoDeadline) {
        const auto since = deadline.time_since_epoch();
        const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
        limit.tv_sec = ns / 1'000'000'000;
        limit.tv_nsec = ns % 1'000'000'000;
        limit_pointer = &limit;
    }
    // The bitset form takes an absolute time on CLOCK_MONOTONIC, which is steady_clock's.
    const long rc = syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word),
                            FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected, limit_pointer,
                            nullptr, FUTEX_BITSET_MATCH_ANY);
    if (rc == 0 || errno == EAGAIN) {
        return WaitResult::CHANGED;
    }
    return errno == ETIMEDOUT ? WaitResult::TIMED_OUT : WaitResult::INTERRUPTED;
}

void futexWakeAll(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX,
            nullptr, nullptr, 0);
}

Deadline deadlineAfter(std::chrono::nanoseconds timeout) {
    if (timeout.count() < 0) {
        return kNoDeadline;
    }
    const auto now = std::chrono::steady_clock::now();
    return timeout > kNoDeadline - now ? kNoDeadline : now + timeout;
}

}  // namespace nixl::base
