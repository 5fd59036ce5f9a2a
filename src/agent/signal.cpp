// See signal.h.
#include "agent/signal.h"

#include <sys/eventfd.h>
#include <unistd.h>

namespace nixl::agent {

Signal::~Signal() {
    if (const int fd = fd_.load(); fd >= 0) {
        close(fd);
    }
}

void Signal::raise() noexcept {
    count_.fetch_add(1, std::memory_order_seq_cst);
    if (waiters_.load(std::memory_order_seq_cst) != 0) {
        base::futexWakeAll(count_);
    }
    if (const int fd = fd_.load(std::memory_order_acquire); fd >= 0) {
        const uint64_t one = 1;
        [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof(one));
    }
}

base::WaitResult Signal::wait(uint32_t seen, base::Deadline deadline) noexcept {
    waiters_.fetch_add(1, std::memory_order_seq_cst);
    const base::WaitResult result = base::futexWait(count_, seen, deadline);
    waiters_.fetch_sub(1, std::memory_order_relaxed);
    return result;
}

int Signal::fileno() {
    MutexLock lock(mutex_);
    if (fd_.load(std::memory_order_relaxed) < 0) {
        // What happened before counts as news: a caller may have missed it.
        const unsigned start = count() != 0 ? 1 : 0;
        fd_.store(eventfd(start, EFD_CLOEXEC | EFD_NONBLOCK), std::memory_order_release);
    }
    return fd_.load(std::memory_order_relaxed);
}

void Signal::drain() noexcept {
    if (const int fd = fd_.load(std::memory_order_acquire); fd >= 0) {
        uint64_t value = 0;
        [[maybe_unused]] const ssize_t got = read(fd, &value, sizeof(value));
    }
}

}  // namespace nixl::agent
