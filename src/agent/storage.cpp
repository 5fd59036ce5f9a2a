// The agent's calls that look at storage, and that tell how far a transfer has come.
#include "nixl/agent.h"

#include "agent/agent_impl.h"
#include "agent/use.h"

namespace nixl {

using agent::check;
using agent::raise;
using agent::take;
using agent::Use;
using detail::AgentImpl;

namespace {

QuerySupport& storageOf(AgentImpl& impl, const std::string& backend) {
    QuerySupport* const support = take(impl, impl.loaded(backend))->backend->query();
    if (support == nullptr) {
        raise(impl, Status::notSupported("backend " + backend + " keeps no storage"));
    }
    return *support;
}

}  // namespace

std::vector<StorageEntry> Agent::listStorage(const std::string& backend,
                                             const std::string& prefix,
                                             size_t limit) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, storageOf(impl, backend).list(prefix, limit));
}

void Agent::removeStorage(const std::string& backend, const std::string& name) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, storageOf(impl, backend).remove(name));
}

std::vector<Status> Agent::removeStorage(const std::string& backend,
                                         std::span<const std::string> names) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return storageOf(impl, backend).removeMany(names);
}

TransferProgress Agent::transferProgress(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.transfer(id))->howFar();
}

}  // namespace nixl
