// The owning handles of nixl/transfer.h.
#include <optional>

#include "nixl/transfer.h"

#include "agent/agent_impl.h"

namespace nixl {

namespace {

// The agent, if it is alive and of this process; its end waits until this goes.
class Alive {
  public:
    explicit Alive(const std::weak_ptr<detail::AgentImpl>& agent) : held_(agent.lock()) {
        if (held_ != nullptr) {
            call_.emplace(held_->gate());
            usable_ = held_->usable().ok();
        }
    }
    explicit operator bool() const { return usable_; }
    detail::AgentImpl* operator->() const { return held_.get(); }

  private:
    std::shared_ptr<detail::AgentImpl> held_;
    std::optional<agent::CallGate::Call> call_;  // before the agent goes
    bool usable_ = false;
};

}  // namespace

TransferHandle::TransferHandle(std::weak_ptr<detail::AgentImpl> agent, HandleId id)
    : agent_(std::move(agent)), id_(id) {}

TransferHandle::TransferHandle(TransferHandle&& other) noexcept
    : agent_(std::move(other.agent_)), id_(other.detach()) {}

TransferHandle& TransferHandle::operator=(TransferHandle&& other) noexcept {
    std::swap(agent_, other.agent_);
    std::swap(id_, other.id_);
    return *this;
}

TransferHandle::~TransferHandle() {
    if (id_ == 0) {
        return;
    }
    if (const Alive agent(agent_); agent) {
        // Released by id already: nothing is left to do.
        static_cast<void>(agent->releaseTransfer(id_).ok());
    }
}

HandleId TransferHandle::detach() noexcept {
    return std::exchange(id_, 0);
}

PreparedList::PreparedList(std::weak_ptr<detail::AgentImpl> agent, HandleId id)
    : agent_(std::move(agent)), id_(id) {}

PreparedList::PreparedList(PreparedList&& other) noexcept
    : agent_(std::move(other.agent_)), id_(other.detach()) {}

PreparedList& PreparedList::operator=(PreparedList&& other) noexcept {
    std::swap(agent_, other.agent_);
    std::swap(id_, other.id_);
    return *this;
}

PreparedList::~PreparedList() {
    if (id_ == 0) {
        return;
    }
    if (const Alive agent(agent_); agent) {
        static_cast<void>(agent->releaseList(id_).ok());
    }
}

HandleId PreparedList::detach() noexcept {
    return std::exchange(id_, 0);
}

RegistrationHandle::RegistrationHandle(std::weak_ptr<detail::AgentImpl> agent,
                                       std::vector<RegistrationList> lists,
                                       std::vector<std::string> backends)
    : agent_(std::move(agent)), lists_(std::move(lists)), backends_(std::move(backends)) {}

RegistrationHandle::RegistrationHandle(RegistrationHandle&& other) noexcept
    : agent_(std::move(other.agent_)),
      lists_(std::exchange(other.lists_, {})),
      backends_(std::move(other.backends_)) {}

RegistrationHandle& RegistrationHandle::operator=(RegistrationHandle&& other) noexcept {
    std::swap(agent_, other.agent_);
    std::swap(lists_, other.lists_);
    std::swap(backends_, other.backends_);
    return *this;
}

RegistrationHandle::~RegistrationHandle() {
    static_cast<void>(release().ok());
}

void RegistrationHandle::forget() noexcept {
    lists_.clear();
}

Status RegistrationHandle::release() {
    const Alive agent(agent_);
    while (!lists_.empty()) {
        if (agent) {
            NIXL_RETURN_IF_ERROR(agent->deregisterMemory(lists_.back(), backends_));
        }
        lists_.pop_back();
    }
    return {};
}

}  // namespace nixl
