// What belongs to the process and not to an agent, with its lock. A forked child has its own from
// the start: a thread of the parent may have held the lock at the fork, and left the value half
// changed. Thread-safe; never destroyed.
#pragma once

#include <atomic>
#include <mutex>

#include <unistd.h>

namespace nixl::ucx {

template <typename Value>
class OfProcess {
  public:
    struct Held {
        std::unique_lock<std::mutex> lock;
        Value& value;
    };
    // The value of this process, locked.
    Held hold() {
        Owned* now = current_.load(std::memory_order_acquire);
        const pid_t process = getpid();
        while (now == nullptr || now->process != process) {
            auto* const made = new Owned;
            made->process = process;
            made->before = now;
            if (current_.compare_exchange_strong(now, made)) {
                now = made;
            } else {
                delete made;
            }
        }
        return {std::unique_lock(now->mutex), now->value};
    }

  private:
    struct Owned {
        pid_t process = 0;
        Owned* before = nullptr;  // the parent's; leak checkers see it here
        std::mutex mutex;
        Value value{};
    };
    std::atomic<Owned*> current_{nullptr};
};

}  // namespace nixl::ucx
