// Waiting for a 32-bit word to change, and waking those who wait. Async-signal-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace nixl::base {

using Deadline = std::chrono::steady_clock::time_point;
inline constexpr Deadline kNoDeadline = Deadline::max();

enum class WaitResult : uint8_t { CHANGED, TIMED_OUT, INTERRUPTED };

// Sleeps while `word` equals `expected`, until a wake, the deadline, or a signal.
WaitResult futexWait(std::atomic<uint32_t>& word, uint32_t expected, Deadline deadline);
void futexWakeAll(std::atomic<uint32_t>& word);

// The deadline `timeout` from now; negative: none.
Deadline deadlineAfter(std::chrono::nanoseconds timeout);

}  // namespace nixl::base
