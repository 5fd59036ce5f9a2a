// nixl::Agent: metadata by address and through central stores; see nixl/agent.h.
#include <memory>

#include "agent/use.h"

namespace nixl {

using agent::Use;
using detail::AgentImpl;

namespace {

// A future, and the callback that ends it. `name` and `peer` are for the error.
struct Waited {
    Waited(const AgentImpl& impl, std::string peer)
        : promise(std::make_shared<std::promise<void>>()),
          done([promise = promise, name = impl.self().name, peer = std::move(peer)](
                   const Status& status) {
              if (status.ok()) {
                  promise->set_value();
              } else {
                  promise->set_exception(std::make_exception_ptr(Error(status, {name, peer, {}})));
              }
          }) {}

    std::shared_ptr<std::promise<void>> promise;
    AgentImpl::Done done;
};

}  // namespace

uint16_t Agent::listenPort() const {
    return Use(impl_)->listenPort();
}

std::future<void> Agent::fetchRemoteMetadata(const std::string& peer, const MetadataPlace& place) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const Waited waited(impl, peer);
    agent::check(impl, impl.fetchMetadata(peer, place, waited.done), peer);
    return waited.promise->get_future();
}

std::future<void> Agent::sendLocalMetadata(const MetadataPlace& place) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const Waited waited(impl, {});
    agent::check(impl, impl.publishMetadata(place, waited.done));
    return waited.promise->get_future();
}

std::future<void> Agent::sendPartialMetadata(const DescriptorList& list,
                                             bool connection_info,
                                             const MetadataPlace& place,
                                             const std::vector<std::string>& backends) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const Waited waited(impl, {});
    agent::check(impl,
                 impl.sendPartialMetadata(list, connection_info, backends, place, waited.done));
    return waited.promise->get_future();
}

std::future<void> Agent::invalidateLocalMetadata(const MetadataPlace& place) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const Waited waited(impl, {});
    agent::check(impl, impl.invalidateMetadata(place, waited.done));
    return waited.promise->get_future();
}

bool Agent::checkRemoteMetadata(const std::string& peer, const DescriptorList* list) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return agent::take(impl, impl.checkMetadata(peer, list), peer);
}

}  // namespace nixl
