// nixl::Agent: waiting for peers; see nixl/agent.h.
#include "agent/use.h"

namespace nixl {

using agent::Use;
using detail::AgentImpl;

namespace {

// Sleeps until `met`, or the deadline, or an interrupting signal; whether it was met.
template <typename Met>
bool waitUntil(AgentImpl& impl, base::Deadline deadline, bool (*interrupted)(), const Met& met) {
    agent::Signal& signal = impl.shared()->signal();
    for (;;) {
        const uint32_t seen = signal.count();
        if (met()) {
            return true;
        }
        impl.aboutToSleep();
        const base::WaitResult result = signal.wait(seen, deadline);
        if (result == base::WaitResult::TIMED_OUT ||
            (result == base::WaitResult::INTERRUPTED && interrupted != nullptr && interrupted())) {
            return met();
        }
        agent::check(impl, impl.usable());
    }
}

std::string listed(const std::vector<std::string>& names) {
    constexpr size_t kMost = 10;
    std::string out;
    for (size_t i = 0; i < names.size() && i < kMost; ++i) {
        out += (i == 0 ? "\"" : ", \"") + names[i] + "\"";
    }
    return names.size() > kMost ? out + ", ..." : out;
}

}  // namespace

std::vector<std::string> Agent::waitPeers(size_t count,
                                          std::chrono::nanoseconds timeout,
                                          bool (*interrupted)()) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    std::vector<std::string> names;
    const bool there = waitUntil(impl, base::deadlineAfter(timeout), interrupted, [&] {
        names = impl.peerNames();
        return names.size() >= count;
    });
    if (!there) {
        const std::string store = impl.storeText();
        throw Error(Status::timeout(
                        "agent \"" + impl.self().name + "\": " + std::to_string(names.size()) +
                        " of " + std::to_string(count) + " peers are known" +
                        (names.empty() ? "" : " (" + listed(names) + ")") +
                        (store.empty() ? "; it has no central store" : "; it looks in " + store)),
                    {impl.self().name, {}, {}});
    }
    return names;
}

void Agent::onPeerChange(std::function<void(const std::string&, bool)> call) {
    Use(impl_)->onPeerChange(std::move(call));
}

uint64_t Agent::peerChanges() const {
    return Use(impl_)->peerChanges();
}

uint64_t Agent::waitPeerChange(uint64_t seen,
                               std::chrono::nanoseconds timeout,
                               bool (*interrupted)()) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    waitUntil(impl, base::deadlineAfter(timeout), interrupted,
              [&] { return impl.peerChanges() > seen; });
    return impl.peerChanges();
}

}  // namespace nixl
