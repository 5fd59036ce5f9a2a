// See dump_signal.h. The handler only wakes a thread, which stays as long as the process.
#include "agent/dump_signal.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <string>
#include <vector>

#include <sys/eventfd.h>
#include <unistd.h>

#include "agent/agent_impl.h"
#include "base/system_error.h"
#include "base/threads.h"

namespace nixl::agent {
namespace {

// Of one process; never destroyed. A forked child has none of its parent's threads: it makes
// another one, and until then the signal does nothing there.
struct Watch {
    const pid_t process = getpid();
    int event = -1;
    Mutex mutex;
    std::vector<std::weak_ptr<detail::AgentImpl>> agents NIXL_GUARDED_BY(mutex);
};

constinit std::atomic<Watch*> known{nullptr};

void onSignal(int /*number*/) {
    const int before = errno;
    const Watch* const watch = known.load(std::memory_order_acquire);
    if (watch != nullptr && watch->process == getpid()) {
        const uint64_t one = 1;
        static_cast<void>(!write(watch->event, &one, sizeof one));
    }
    errno = before;
}

void writeAll(std::string_view text) {
    while (!text.empty()) {
        const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
        if (written <= 0 && errno != EINTR) {
            return;
        }
        text.remove_prefix(written > 0 ? static_cast<size_t>(written) : 0);
    }
}

void dumpAll(Watch& watch) {
    std::vector<std::shared_ptr<detail::AgentImpl>> alive;
    {
        const MutexLock lock(watch.mutex);
        for (const auto& weak : watch.agents) {
            if (std::shared_ptr<detail::AgentImpl> agent = weak.lock(); agent != nullptr) {
                alive.push_back(std::move(agent));
            }
        }
    }
    std::string text;
    for (const auto& agent : alive) {
        const CallGate::Call inside(agent->gate());
        if (agent->usable().ok()) {
            text += agent->dumpState();
        }
    }
    writeAll(text);
}

// The Watch of this process, with its thread; made by the first who asks.
Result<Watch*> watchOfProcess() {
    Watch* now = known.load(std::memory_order_acquire);
    if (now != nullptr && now->process == getpid()) {
        return now;
    }
    auto fresh = std::make_unique<Watch>();
    fresh->event = eventfd(0, EFD_CLOEXEC);
    if (fresh->event < 0) {
        return base::systemError("SIGUSR2: eventfd", errno);
    }
    Watch* const made = fresh.get();
    if (!known.compare_exchange_strong(now, made)) {
        close(fresh->event);
        return now;  // another thread was faster
    }
    [[maybe_unused]] const Watch* const kept = fresh.release();
    Result<std::thread> thread = base::startThread("nixl-dump", base::Priority::NORMAL, [made] {
        uint64_t count = 0;
        while (read(made->event, &count, sizeof count) > 0 || errno == EINTR) {
            dumpAll(*made);
        }
    });
    if (!thread.ok()) {
        return thread.status();
    }
    thread.value().detach();
    return made;
}

}  // namespace

Status dumpOnSignal(std::weak_ptr<detail::AgentImpl> agent) {
    struct sigaction present {};
    sigaction(SIGUSR2, nullptr, &present);
    if (present.sa_handler != SIG_DFL && present.sa_handler != &onSignal) {
        return Status::notAllowed(
            "SIGUSR2 has a handler already, so it does not show what agents hold; "
            "dump_state() does");
    }
    Result<Watch*> watch = watchOfProcess();
    if (!watch.ok()) {
        return watch.status();
    }
    {
        const MutexLock lock(watch.value()->mutex);
        auto& agents = watch.value()->agents;
        std::erase_if(agents, [](const auto& weak) { return weak.expired(); });
        agents.push_back(std::move(agent));
    }
    struct sigaction wanted {};
    wanted.sa_handler = &onSignal;
    wanted.sa_flags = SA_RESTART;
    sigemptyset(&wanted.sa_mask);
    sigaction(SIGUSR2, &wanted, nullptr);
    return {};
}

}  // namespace nixl::agent
