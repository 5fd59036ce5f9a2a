// See threads.h.
#include "base/threads.h"

#include <csignal>
#include <string>
#include <system_error>

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace nixl::base {

namespace {

// struct sched_attr in its first form: newer kernels take it, older ones know no slices.
struct SchedulingAttributes {
    uint32_t size = sizeof(SchedulingAttributes);
    uint32_t policy = SCHED_BATCH;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime = 0;  // nanoseconds
    uint64_t deadline = 0;
    uint64_t period = 0;
};

// Long slices: with as much processor time as before a batch thread gets in the way of threads that
// answer somebody less often, and those preempt it when they wake. A refusal only costs latency.
void becomeBatch() {
    SchedulingAttributes attributes;
    attributes.runtime = 12'000'000;
    if (syscall(SYS_sched_setattr, 0, &attributes, 0U) != 0) {
        const sched_param param{};
        sched_setscheduler(0, SCHED_BATCH, &param);
    }
}

}  // namespace

Result<std::thread> startThread(const char* name, Priority priority, std::function<void()> body) {
    // The new thread inherits the mask, so no signal can arrive before it could block them.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread thread;
    int error = 0;
    try {
        thread = std::thread([priority, body = std::move(body)] {
            if (priority == Priority::BATCH) {
                becomeBatch();
            }
            body();
        });
    } catch (const std::system_error& failure) {
        error = failure.code().value();
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error != 0) {
        return Status::backend(std::string("cannot start thread ") + name + ": " +
                                   std::generic_category().message(error),
                               error);
    }
    pthread_setname_np(thread.native_handle(), std::string(name).substr(0, 15).c_str());
    return thread;
}

ProcessMark::ProcessMark() : pid_(getpid()) {}

bool ProcessMark::forked() const noexcept {
    return getpid() != pid_;
}

}  // namespace nixl::base
