// See fork.h.
#include "base/fork.h"

#include <mutex>

#include <pthread.h>

namespace nixl::base {

namespace {

constexpr size_t kLocks = static_cast<size_t>(ProcessLock::COUNT);
constinit Mutex locks[kLocks];
constinit std::atomic<uint64_t> epoch{0};
constinit std::atomic<bool> watched{false};
constinit std::once_flag once;  // a fork in the middle of it starts it over in the child

void beforeFork() NIXL_NO_TSA {
    for (Mutex& lock : locks) {
        lock.lock();
    }
}

void afterFork() NIXL_NO_TSA {
    for (size_t i = kLocks; i-- > 0;) {
        locks[i].unlock();
    }
}

void inChild() {
    epoch.fetch_add(1, std::memory_order_relaxed);
    afterFork();
}

void watch() {
    if (!watched.load(std::memory_order_acquire)) {
        std::call_once(once, [] {
            pthread_atfork(beforeFork, afterFork, inChild);
            watched.store(true, std::memory_order_release);
        });
    }
}

}  // namespace

Mutex& processMutex(ProcessLock which) {
    watch();
    return locks[static_cast<size_t>(which)];
}

uint64_t forkEpoch() noexcept {
    watch();
    return epoch.load(std::memory_order_relaxed);
}

}  // namespace nixl::base
