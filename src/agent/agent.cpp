// nixl::Agent: turns Statuses into nixl::Error; see nixl/agent.h.
#include "nixl/agent.h"

#include <cstdlib>

#include "agent/use.h"
#include "backend/plugins.h"
#include "telemetry/json.h"

namespace nixl {

using agent::check;
using agent::raise;
using agent::take;
using agent::TransferState;
using agent::Use;
using base::Deadline;
using detail::AgentImpl;

namespace {

XferState stateOf(uint32_t word) {
    switch (word) {
        case TransferState::PENDING:
            return XferState::PENDING;
        case TransferState::DONE:
            return XferState::DONE;
        case TransferState::CANCELED:
            return XferState::CANCELED;
        default:
            return XferState::FAILED;
    }
}

const PluginTable* table(const std::string& plugin) {
    Result<const PluginTable*> found = backend::PluginRegistry::instance().find(plugin);
    if (!found.ok()) {
        throw Error(found.status(), {{}, {}, plugin});
    }
    return found.value();
}

}  // namespace

Agent::Agent(std::string name, AgentConfig config) {
    Result<std::shared_ptr<AgentImpl>> made = AgentImpl::create(name, std::move(config));
    if (!made.ok()) {
        throw Error(made.status(), {std::move(name), {}, {}});
    }
    impl_ = std::move(made).value();
}

Agent::~Agent() {
    if (impl_->forked()) {
        // Threads, sockets and locks are the parent's: what holds them is kept for good.
        // NOLINTNEXTLINE(bugprone-unhandled-exception-at-new)
        static_cast<void>(new std::shared_ptr<AgentImpl>(std::move(impl_)));
        return;
    }
    impl_->shutDown();
}

void Agent::close() noexcept {
    impl_->shutDown();
}

const std::string& Agent::name() const noexcept {
    return impl_->self().name;
}
const AgentConfig& Agent::config() const noexcept {
    return impl_->config();
}

std::string Agent::incarnation() const {
    std::string text;
    for (const uint8_t byte : impl_->self().incarnation) {
        constexpr char kDigits[] = "0123456789abcdef";
        text += kDigits[byte >> 4];
        text += kDigits[byte & 15];
    }
    return text;
}

std::vector<std::string> Agent::availablePlugins() const {
    return backend::PluginRegistry::instance().names();
}

std::vector<MemType> Agent::pluginMemoryTypes(const std::string& plugin) const {
    const PluginTable* const found = table(plugin);
    return {found->memoryTypes, found->memoryTypes + found->memoryTypeCount};
}

std::vector<PluginParameter> Agent::pluginParameters(const std::string& plugin) const {
    const PluginTable* const found = table(plugin);
    std::vector<PluginParameter> out;
    for (size_t i = 0; i < found->parameterCount; ++i) {
        const ParameterSpec& spec = found->parameters[i];
        out.push_back({spec.name, backend::parameterTypeName(spec.type),
                       spec.defaultValue == nullptr ? "" : spec.defaultValue,
                       spec.help == nullptr ? "" : spec.help});
    }
    return out;
}

std::vector<std::string> Agent::backends() const {
    std::vector<std::string> names;
    for (const auto& loaded : Use(impl_)->loadedBackends()) {
        names.push_back(loaded->name);
    }
    return names;
}

std::string Agent::createBackend(const std::string& plugin, const BackendParams& params) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.createBackend(plugin, params));
}

std::map<std::string, std::string> Agent::backendParameters(const std::string& backend) const {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.loaded(backend))->parameters.values();
}

BackendCapabilities Agent::backendCapabilities(const std::string& backend) const {
    const Use use(impl_);
    AgentImpl& impl = *use;
    Backend& one = *take(impl, impl.loaded(backend))->backend;
    return {one.supportsLocal(), one.supportsRemote(), one.supportsNotif(), one.getSupportedMems()};
}

XferState Agent::postTransfer(HandleId id, std::optional<std::string_view> notification) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, impl.post(id, notification));
    return transferState(id);
}

XferState Agent::checkTransfer(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const auto held = take(impl, impl.transfer(id));
    uint32_t word = held->word();
    if (word == TransferState::PENDING) {
        held->progress();
        word = held->word();
    }
    if (word == TransferState::UNPOSTED) {
        raise(impl, {ErrorCode::NOT_POSTED, "the transfer has never been posted"});
    }
    while (word == TransferState::FAILED || word == TransferState::CANCELED) {
        if (const Status error = held->error(); !error.ok()) {
            raise(impl, error, held->peerName());
        }
        word = held->word();  // another thread has posted it again meanwhile
    }
    return stateOf(word);
}

XferState Agent::transferState(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const auto held = take(impl, impl.transfer(id));
    if (held->word() == TransferState::UNPOSTED) {
        raise(impl, {ErrorCode::NOT_POSTED, "the transfer has never been posted"});
    }
    return stateOf(held->word());
}

// Shares in the work before sleeping: a help that took long did some, and there may be more. Not
// for long, since signals are seen by the sleep only.
static void helpForAWhile(agent::Transfer& transfer, Deadline deadline) {
    using Clock = std::chrono::steady_clock;
    const Deadline end = std::min(deadline, Clock::now() + std::chrono::milliseconds(20));
    for (auto before = Clock::now();;) {
        transfer.progress();
        const auto now = Clock::now();
        if (transfer.word() != TransferState::PENDING || now >= end ||
            now - before < std::chrono::microseconds(10)) {
            return;
        }
        before = now;
    }
}

// Looks for as long as busy_poll_us says. True where the caller need not sleep: something was seen,
// or a signal came, which a later sleep would not notice.
template <typename Look>
static bool spinBeforeSleep(AgentImpl& impl,
                            Deadline deadline,
                            bool (*interrupted)(),
                            const Look& look) {
    base::BusyPoll& poll = impl.shared()->busyPoll;
    if (poll.spin(deadline, look) || (poll.enabled() && interrupted != nullptr && interrupted())) {
        return true;
    }
    poll.countSleep();
    return false;
}

XferState Agent::waitTransfer(HandleId id,
                              std::chrono::nanoseconds timeout,
                              bool (*interrupted)()) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const Deadline deadline = base::deadlineAfter(timeout);
    const auto held = take(impl, impl.transfer(id));
    while (held->word() == TransferState::PENDING) {
        helpForAWhile(*held, deadline);
        const bool stop = spinBeforeSleep(impl, deadline, interrupted, [&] {
            held->progress();
            return held->word() != TransferState::PENDING;
        });
        if (stop) {
            break;
        }
        impl.aboutToSleep();
        const base::WaitResult result = held->state()->wait(deadline);
        if (held->word() != TransferState::PENDING) {
            break;
        }
        if (result == base::WaitResult::TIMED_OUT) {
            raise(impl,
                  Status::timeout("the transfer with agent \"" + held->peerName() +
                                  "\" is still in progress after the time given to wait"),
                  held->peerName());
        }
        if (result == base::WaitResult::INTERRUPTED && interrupted != nullptr && interrupted()) {
            return XferState::PENDING;
        }
    }
    impl.shared()->signal().drain();
    return checkTransfer(id);
}

int64_t Agent::waitAny(std::span<const HandleId> ids,
                       std::chrono::nanoseconds timeout,
                       bool (*interrupted)()) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const Deadline deadline = base::deadlineAfter(timeout);
    agent::Signal& signal = impl.shared()->signal();
    int64_t ended = -1;
    const auto look = [&] {
        for (size_t i = 0; i < ids.size() && ended < 0; ++i) {
            const auto held = take(impl, impl.transfer(ids[i]));
            if (held->word() == TransferState::PENDING) {
                held->progress();
            }
            if (held->word() != TransferState::PENDING) {
                ended = static_cast<int64_t>(i);
            }
        }
        return ended >= 0;
    };
    for (;;) {
        const uint32_t seen = signal.count();
        if (look() || spinBeforeSleep(impl, deadline, interrupted, look)) {
            signal.drain();
            return ended;
        }
        impl.aboutToSleep();
        const base::WaitResult result = signal.wait(seen, deadline);
        if (result == base::WaitResult::TIMED_OUT ||
            (result == base::WaitResult::INTERRUPTED && interrupted != nullptr && interrupted())) {
            return -1;
        }
    }
}

void Agent::cancelTransfer(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    take(impl, impl.transfer(id))
        ->cancel(std::chrono::steady_clock::now() + std::chrono::milliseconds(100));
}

void Agent::releaseTransfer(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, impl.releaseTransfer(id));
}

void Agent::releaseTransfer(TransferHandle& handle) {
    if (const HandleId id = handle.detach(); id != 0) {
        releaseTransfer(id);
    }
}

Status Agent::transferError(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.transfer(id))->error();
}

std::vector<DescriptorFailure> Agent::transferFailures(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.transfer(id))->failures();
}

TransferTelemetry Agent::transferTelemetry(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.telemetry(id));
}

TransferExplanation Agent::explainTransfer(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.transfer(id))->explain();
}

TransferCost Agent::estimateTransfer(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.transfer(id))->estimate();
}

std::string Agent::transferBackend(HandleId id) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.transfer(id))->backendName();
}

void Agent::sendNotification(const std::string& peer,
                             std::string_view message,
                             const std::string& backend) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    if (!backend.empty()) {
        take(impl, impl.loaded(backend));
    }
    check(impl, impl.sendNotification(peer, message), peer);
}

std::vector<Notification> Agent::takeNotifications() {
    return Use(impl_)->takeNotifications();
}

bool Agent::waitNotifications(std::chrono::nanoseconds timeout, bool (*interrupted)()) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const Deadline deadline = base::deadlineAfter(timeout);
    agent::Signal& signal = impl.shared()->signal();
    const auto look = [&] {
        impl.helpSessions();
        return impl.shared()->hasNotifications();
    };
    for (;;) {
        const uint32_t seen = signal.count();
        if (impl.shared()->hasNotifications() ||
            spinBeforeSleep(impl, deadline, interrupted, look)) {
            return impl.shared()->hasNotifications();
        }
        impl.aboutToSleep();
        const base::WaitResult result = signal.wait(seen, deadline);
        if (result == base::WaitResult::TIMED_OUT ||
            (result == base::WaitResult::INTERRUPTED && interrupted != nullptr && interrupted())) {
            return impl.shared()->hasNotifications();
        }
        check(impl, impl.usable());
    }
}

int Agent::fileno() {
    const Use use(impl_);
    AgentImpl& impl = *use;
    const int fd = impl.shared()->signal().fileno();
    if (fd < 0) {
        raise(impl, Status::backend("no eventfd can be made (descriptor limit)", errno));
    }
    impl.sleepOnEvents();
    return fd;
}

void Agent::drain() {
    Use(impl_)->shared()->signal().drain();
}

std::string Agent::metadata() {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.metadata());
}

std::string Agent::partialMetadata(const DescriptorList& list,
                                   bool connection_info,
                                   const std::vector<std::string>& backends) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.partialMetadata(list, connection_info, backends));
}

std::string Agent::addPeer(std::string_view metadata) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.addPeer(metadata));
}

void Agent::removePeer(const std::string& peer) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, impl.removePeer(peer), peer);
}

bool Agent::hasPeer(const std::string& peer, const DescriptorList* list) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    return take(impl, impl.hasPeer(peer, list), peer);
}

std::vector<std::string> Agent::peers() const {
    return Use(impl_)->peerNames();
}

void Agent::connect(const std::string& peer, const std::vector<std::string>& backends) {
    const Use use(impl_);
    AgentImpl& impl = *use;
    check(impl, impl.connect(peer, backends), peer);
}

std::map<std::string, uint64_t> Agent::stats() const {
    return Use(impl_)->stats();
}
AgentTelemetry Agent::telemetry() const {
    return Use(impl_)->telemetry();
}
std::string Agent::telemetryJson() const {
    return telemetry::toJson(telemetry());
}
std::string Agent::dumpState() const {
    return Use(impl_)->dumpState();
}

}  // namespace nixl
