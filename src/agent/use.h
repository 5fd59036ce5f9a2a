// How nixl::Agent's calls use its implementation: inside its gate, Statuses turned into
// nixl::Error. Threads: any.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "nixl/error.h"

#include "agent/agent_impl.h"

namespace nixl::agent {

[[noreturn]] inline void raise(const detail::AgentImpl& impl,
                               const Status& status,
                               std::string peer = {}) {
    throw Error(status, {impl.self().name, std::move(peer), {}});
}

inline void check(const detail::AgentImpl& impl,
                  const Status& status,
                  const std::string& peer = {}) {
    if (!status.ok()) {
        raise(impl, status, peer);
    }
}

template <typename T>
T take(const detail::AgentImpl& impl, Result<T> result, const std::string& peer = {}) {
    check(impl, result.status(), peer);
    return std::move(result).value();
}

// The implementation, if this process may use it; its end waits until this goes.
class Use {
  public:
    explicit Use(const std::shared_ptr<detail::AgentImpl>& impl)
        : impl_(*impl), call_(impl->gate()) {
        check(impl_, impl_.usable());
    }
    detail::AgentImpl& operator*() const { return impl_; }
    detail::AgentImpl* operator->() const { return &impl_; }

  private:
    detail::AgentImpl& impl_;
    const CallGate::Call call_;
};

}  // namespace nixl::agent
