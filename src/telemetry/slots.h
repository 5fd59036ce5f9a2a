// Small numbers for threads, so that each can count in memory of its own. A number is taken when a
// thread first counts and given to another one when it has ended. Thread-safe.
#pragma once

namespace nixl::telemetry {

inline constexpr unsigned kSlots = 48;  // threads with a number; later ones share kSlots

// Of the calling thread: below kSlots nobody else has it, kSlots is shared.
unsigned threadSlot() noexcept;

}  // namespace nixl::telemetry
