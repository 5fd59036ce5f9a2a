// See slots.h.
#include "telemetry/slots.h"

#include <bit>
#include <cstdint>

#include "base/fork.h"

namespace nixl::telemetry {
namespace {

constexpr unsigned kNone = kSlots + 1;

constinit uint64_t taken = 0;  // one bit for each number; under the process lock TELEMETRY
constinit thread_local unsigned mine = kNone;

// Gives the number back when the thread ends; what ends after it counts in the shared place.
struct Returned {
    ~Returned() {
        if (mine < kSlots) {
            const MutexLock lock(base::processMutex(base::ProcessLock::TELEMETRY));
            taken &= ~(uint64_t{1} << mine);
        }
        mine = kSlots;
    }
};

unsigned take() noexcept {
    {
        const MutexLock lock(base::processMutex(base::ProcessLock::TELEMETRY));
        const auto first = static_cast<unsigned>(std::countr_one(taken));
        mine = first < kSlots ? first : kSlots;
        if (mine < kSlots) {
            taken |= uint64_t{1} << mine;
        }
    }
    thread_local const Returned returned;
    static_cast<void>(&returned);
    return mine;
}

}  // namespace

unsigned threadSlot() noexcept {
    const unsigned slot = mine;
    return slot != kNone ? slot : take();
}

}  // namespace nixl::telemetry
