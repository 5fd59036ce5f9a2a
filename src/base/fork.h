// What a fork does to the state of the process. Locks that belong to no object live here: none is
// held by another thread while the process forks, so a forked child finds them free and what they
// guard whole. Thread-safe; nothing here is made at start-up or destroyed.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/mutex.h"

namespace nixl::base {

// In the order in which one thread may take several. Under them nothing forks, waits or calls back.
enum class ProcessLock : uint8_t {
    KEPT,
    PLUGINS,
    LOCAL_AGENTS,
    STORES,
    CLOCK,
    TELEMETRY,
    CONNECTS,
    COUNT
};
Mutex& processMutex(ProcessLock which);

// Differs from its value in the process that forked this one.
uint64_t forkEpoch() noexcept;

}  // namespace nixl::base
