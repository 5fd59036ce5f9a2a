// See target_access.h.
#include "peer/target_access.h"

#include <map>

#include "base/mutex.h"

namespace nixl::peer {
namespace {

struct Registry {
    Mutex mutex;
    std::map<Incarnation, std::weak_ptr<TargetAccess>> agents NIXL_GUARDED_BY(mutex);
};

// Never destroyed: agents may end during the exit of the process.
Registry& registry() {
    static auto* const kRegistry = new Registry;
    return *kRegistry;
}

}  // namespace

void enterLocalAgent(const Incarnation& who, std::weak_ptr<TargetAccess> access) {
    MutexLock lock(registry().mutex);
    registry().agents[who] = std::move(access);
}

void leaveLocalAgent(const Incarnation& who) {
    MutexLock lock(registry().mutex);
    registry().agents.erase(who);
}

std::shared_ptr<TargetAccess> findLocalAgent(const Incarnation& who) {
    MutexLock lock(registry().mutex);
    const auto found = registry().agents.find(who);
    return found == registry().agents.end() ? nullptr : found->second.lock();
}

}  // namespace nixl::peer
