// See threads.h.
#include "base/threads.h"

#include <cerrno>
#include <csignal>
#include <string>
#include <system_error>

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/system_error.h"

namespace nixl::base {

namespace {

// struct sched_attr in its first form: newer kernels take it, older ones know no slices.
struct SchedulingAttributes {
    uint32_t size = sizeof(SchedulingAttributes);
    uint32_t policy = SCHED_OTHER;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime = 0;  // nanoseconds: the slice
    uint64_t deadline = 0;
    uint64_t period = 0;
};

// With as much processor time as before, who has the shorter slice preempts who has the longer one
// when it wakes (Linux 6.12 and later), and batch threads preempt nobody. So what answers somebody
// has the shortest slice there is, and copies in bulk a long one. Measured with two polling
// processes on two processors: a write of 64 B between two hosts took 3,990 us while the threads
// that serve it had batch priority, because they waited for the end of a poller's turn.
constexpr uint64_t kResponsiveSlice = 100'000;
constexpr uint64_t kBulkSlice = 12'000'000;

// A refusal only costs latency.
void setScheduling(int policy, uint64_t slice) {
    SchedulingAttributes attributes;
    attributes.policy = static_cast<uint32_t>(policy);
    attributes.runtime = slice;
    // The calling thread keeps the nice value that its process was given.
    errno = 0;
    const int nice = getpriority(PRIO_PROCESS, 0);
    attributes.nice = errno == 0 ? nice : 0;
    if (syscall(SYS_sched_setattr, 0, &attributes, 0U) != 0) {
        const sched_param param{};
        sched_setscheduler(0, policy, &param);
    }
}

// Of the calling thread. FOREIGN: not one of ours, or one whose scheduling is its own affair.
enum class Mode : uint8_t { FOREIGN, RESPONSIVE, BULK };
thread_local Mode mode = Mode::FOREIGN;

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
            // Another policy than the usual one was chosen by whoever started this process.
            if (priority == Priority::RESPONSIVE && sched_getscheduler(0) == SCHED_OTHER) {
                mode = Mode::RESPONSIVE;
                setScheduling(SCHED_OTHER, kResponsiveSlice);
            }
            body();
        });
    } catch (const std::system_error& failure) {
        error = failure.code().value();
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error != 0) {
        return systemError(std::string("cannot start thread ") + name, error);
    }
    pthread_setname_np(thread.native_handle(), std::string(name).substr(0, 15).c_str());
    return thread;
}

void workInBulk(bool bulk) {
    const Mode wanted = bulk ? Mode::BULK : Mode::RESPONSIVE;
    if (mode == Mode::FOREIGN || mode == wanted) {
        return;
    }
    mode = wanted;
    setScheduling(bulk ? SCHED_BATCH : SCHED_OTHER, bulk ? kBulkSlice : kResponsiveSlice);
}

ProcessMark::ProcessMark() : pid_(getpid()) {}

bool ProcessMark::forked() const noexcept {
    return getpid() != pid_;
}

}  // namespace nixl::base
