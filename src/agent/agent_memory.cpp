// nixl::Agent: registering memory, lists and preparing transfers; see nixl/agent.h.
#include <utility>

#include "nixl/agent.h"

#include "agent/use.h"

namespace nixl {

using agent::check;
using agent::take;
using agent::Use;
using detail::AgentImpl;

void Agent::registerMemory(const RegistrationList& list, const std::vector<std::string>& backends) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, impl.registerMemory(list, backends));
}

void Agent::deregisterMemory(const RegistrationList& list,
                             const std::vector<std::string>& backends) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, impl.deregisterMemory(list, backends));
}

RegistrationHandle Agent::registerMemory(const std::vector<MemDescriptor>& descriptors,
                                         const std::string& backend) {
    std::vector<std::string> backends;
    if (!backend.empty()) {
        backends.push_back(backend);
    }
    // One list per memory type, in the order of their first descriptors.
    std::vector<RegistrationList> lists;
    for (const MemDescriptor& one : descriptors) {
        RegistrationList* list = nullptr;
        for (RegistrationList& known : lists) {
            list = known.type() == one.type ? &known : list;
        }
        if (list == nullptr) {
            list = &lists.emplace_back(one.type);
        }
        list->append(one.address, one.size, one.deviceId, one.metadata);
    }
    // What was registered goes again when a later list fails.
    RegistrationHandle done;
    for (size_t i = 0; i < lists.size(); ++i) {
        registerMemory(lists[i], backends);
        RegistrationHandle next(
            impl_, {lists.begin(), lists.begin() + static_cast<std::ptrdiff_t>(i) + 1}, backends);
        done.forget();
        done = std::move(next);
    }
    return done;
}

void Agent::deregisterMemory(RegistrationHandle& registration) {
    check(*Use(impl_), registration.release());
}

std::vector<Agent::QueryResult> Agent::queryMemory(const RegistrationList& list,
                                                   const std::string& backend) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.query(list, backend));
}

PreparedList Agent::prepareList(const std::string& peer,
                                DescriptorList list,
                                const std::vector<std::string>& backends) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return {impl_, take(impl, impl.prepareList(peer, std::move(list), backends), peer)};
}

void Agent::releaseList(PreparedList& list) {
    if (const HandleId id = list.detach(); id != 0) {
        releaseList(id);
    }
}

void Agent::releaseList(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, impl.releaseList(id));
}

TransferHandle Agent::prepareTransfer(OpType op,
                                      const DescriptorList& local,
                                      const DescriptorList& remote,
                                      const std::string& peer,
                                      const std::string& backend) {
    TransferOptions options;
    if (!backend.empty()) {
        options.backends.push_back(backend);
    }
    return prepareTransfer(op, local, remote, peer, options);
}

TransferHandle Agent::prepareTransfer(OpType op,
                                      const DescriptorList& local,
                                      const DescriptorList& remote,
                                      const std::string& peer,
                                      const TransferOptions& options) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return {impl_, take(impl, impl.prepareTransfer(op, local, remote, peer, options), peer)};
}

TransferHandle Agent::prepareTransfer(OpType op,
                                      HandleId local,
                                      std::span<const int64_t> local_indices,
                                      HandleId remote,
                                      std::span<const int64_t> remote_indices,
                                      const TransferOptions& options) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return {impl_, take(impl, impl.prepareTransfer<int64_t>(op, local, local_indices, remote,
                                                            remote_indices, options))};
}

TransferHandle Agent::prepareTransfer(OpType op,
                                      HandleId local,
                                      std::span<const int32_t> local_indices,
                                      HandleId remote,
                                      std::span<const int32_t> remote_indices,
                                      const TransferOptions& options) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return {impl_, take(impl, impl.prepareTransfer<int32_t>(op, local, local_indices, remote,
                                                            remote_indices, options))};
}

}  // namespace nixl
