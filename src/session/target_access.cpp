// See target_access.h.
#include "session/target_access.h"

#include <map>

#include "base/fork.h"

namespace nixl::peer {
namespace {

using Agents = std::map<Incarnation, std::weak_ptr<TargetAccess>>;

// Under the lock. Never destroyed: agents may end during the exit of the process.
constinit Agents* agents = nullptr;
constinit uint64_t agents_epoch = 0;

Mutex& mutex() {
    return base::processMutex(base::ProcessLock::LOCAL_AGENTS);
}

// Of this process: those of the process that forked it are not here. Under the lock.
Agents& ours() {
    if (agents == nullptr) {
        agents = new Agents;
    }
    if (const uint64_t epoch = base::forkEpoch(); agents_epoch != epoch) {
        agents_epoch = epoch;
        agents->clear();
    }
    return *agents;
}

}  // namespace

void enterLocalAgent(const Incarnation& who, std::weak_ptr<TargetAccess> access) {
    const MutexLock lock(mutex());
    ours()[who] = std::move(access);
}

void leaveLocalAgent(const Incarnation& who) {
    const MutexLock lock(mutex());
    ours().erase(who);
}

std::shared_ptr<TargetAccess> findLocalAgent(const Incarnation& who) {
    const MutexLock lock(mutex());
    const auto found = ours().find(who);
    return found == ours().end() ? nullptr : found->second.lock();
}

}  // namespace nixl::peer
