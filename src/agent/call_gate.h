// Counts the calls that are inside an agent, so that its end can wait for them: whoever closes an
// agent does not know who is using it. Owned by the agent.
//
// Threads: any. Entering and leaving is one addition to a counter that few threads share.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "base/futex.h"

namespace nixl::agent {

class CallGate {
  public:
    // One call; lives on the stack of its thread.
    class Call {
      public:
        explicit Call(CallGate& gate) noexcept : gate_(&gate), outer_(innermost()) {
            innermost() = this;
            // Read-modify-write: ordered before the look at whether the agent has ended.
            gate.stripe().fetch_add(1);
        }
        ~Call() {
            gate_->stripe().fetch_sub(1, std::memory_order_release);
            innermost() = outer_;
        }
        Call(const Call&) = delete;
        Call& operator=(const Call&) = delete;

      private:
        friend class CallGate;
        CallGate* const gate_;
        Call* const outer_;
    };

    // REQUIRES: no call begins any more that goes past its look at the agent's end. Waits until all
    // have left but those of this very thread (a signal handler may close the agent it waits in).
    bool awaitEmpty(base::Deadline deadline) const {
        uint64_t own = 0;
        for (const Call* call = innermost(); call != nullptr; call = call->outer_) {
            own += call->gate_ == this ? 1 : 0;
        }
        while (inside() > own) {
            if (std::chrono::steady_clock::now() >= deadline) {
                return false;
            }
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
        return true;
    }

  private:
    static constexpr size_t kStripes = 16;
    struct alignas(64) Stripe {
        std::atomic<uint64_t> calls{0};
    };

    static Call*& innermost() noexcept {
        thread_local Call* call = nullptr;
        return call;
    }
    std::atomic<uint64_t>& stripe() noexcept {
        static std::atomic<size_t> next{0};
        thread_local const size_t mine = next.fetch_add(1, std::memory_order_relaxed) % kStripes;
        return stripes_[mine].calls;
    }
    uint64_t inside() const noexcept {
        uint64_t sum = 0;
        for (const Stripe& one : stripes_) {
            sum += one.calls.load();
        }
        return sum;
    }

    std::array<Stripe, kStripes> stripes_;
};

}  // namespace nixl::agent
