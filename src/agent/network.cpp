// AgentImpl: the session engine, made when the first backend asks for lanes.
#include <cstdlib>
#include <future>

#include "agent/agent_impl.h"
#include "agent/auth_key.h"
#include "base/socket.h"
#include "lanes/local/lane.h"
#include "session/wire.h"

namespace nixl::detail {

namespace {

constexpr std::chrono::milliseconds kUndeliveredRest{50};

}  // namespace

peer::Engine* AgentImpl::engine() const {
    return engineReady_.load(std::memory_order_acquire);
}

std::shared_ptr<Pollers> AgentImpl::pollers() const {
    peer::Engine* const sessions = engine();
    return sessions == nullptr ? nullptr : sessions->pollers();
}

Status AgentImpl::ensureEngine() {
    MutexLock lock(engineMutex_);
    if (engine_ != nullptr) {
        return {};
    }
    Result<std::string> key = agent::readAuthKey(config_);
    if (!key.ok()) {
        return key.status();
    }
    peer::EngineConfig config;
    config.self = self();
    config.authKey = std::move(key).value();
    config.peerTimeout = config_.peerTimeout;
    const char* const folder = std::getenv("NIXL_SOCKET_DIR");
    config.socketDir = config_.socketDir.empty() && folder != nullptr ? folder : config_.socketDir;
    const char* const congestion = std::getenv("NIXL_TCP_CONGESTION");
    config.tcpCongestion = congestion != nullptr ? congestion : "";
    if (Status known = base::checkCongestion(config.tcpCongestion); !known.ok()) {
        return Status::invalidParam("NIXL_TCP_CONGESTION: " + known.message());
    }
    config.busyPollMicroseconds = config_.busyPollMicroseconds;
    shared_->onPeerLost = [this](const peer::Identity& who, const Status& why) {
        sessionLost(who, why);
    };
    Result<std::unique_ptr<peer::Engine>> made =
        peer::Engine::create(config, *reactor_, *pool_, *shared_);
    if (!made.ok()) {
        return made.status();
    }
    engine_ = std::move(made).value();
    {
        ReadLock peers_lock(peersMutex_);
        for (const auto& [name, known] : peers_) {
            static_cast<void>(
                engine_->addPeer(known->identity, known->session, known->grants).ok());
        }
    }
    if (shared_->signal().hasFileno()) {
        engine_->sleepOnEvents();
    }
    engineReady_.store(engine_.get(), std::memory_order_release);
    return {};
}

Result<std::vector<std::unique_ptr<Lane>>> AgentImpl::projectLanes(PluginServices& services,
                                                                   const LaneBackendSpec& spec) {
    NIXL_RETURN_IF_ERROR(ensureEngine());
    std::vector<std::unique_ptr<Lane>> lanes;
    lanes.push_back(peer::makeLocalLane(self(), services,
                                        std::chrono::microseconds(spec.inlineBudgetMicroseconds)));
    peer::LaneOptions options;
    options.inlineBudgetMicroseconds = spec.inlineBudgetMicroseconds;
    options.checksum = spec.checksum;
    // A lane may fall back to the other only where that is wanted too.
    const auto wanted = [&](std::string_view name) {
        return spec.wantedLanes.empty() ||
               ("," + spec.wantedLanes + ",").find("," + std::string(name) + ",") !=
                   std::string::npos;
    };
    options.fallBack = wanted("host") && wanted("stream");
    for (auto& lane : engine()->lanes(options)) {
        lanes.push_back(std::move(lane));
    }
    return lanes;
}

Status AgentImpl::connectSession(const peer::Identity& who) {
    auto outcome = std::make_shared<std::promise<Status>>();
    engine()->connect(who, [outcome](const Status& status) { outcome->set_value(status); });
    // The engine answers within its peer timeout; twice that is a defect and no reason to hang.
    std::future<Status> result = outcome->get_future();
    if (result.wait_for(2 * config_.peerTimeout + std::chrono::seconds(1)) !=
        std::future_status::ready) {
        return Status::timeout("agent \"" + who.name + "\": no session within " +
                               std::to_string(2 * config_.peerTimeout.count()) + " ms");
    }
    return result.get();
}

void AgentImpl::openSession(const peer::Identity& who, std::function<void(Status)> done) {
    peer::Engine* const sessions = engine();
    if (who == self() || peer::findLocalAgent(who.incarnation) != nullptr ||
        (sessions != nullptr && sessions->ready(who))) {
        done({});
    } else if (sessions == nullptr) {
        done(Status::disconnected("agent \"" + who.name + "\" cannot be reached"));
    } else {
        sessions->connect(who, std::move(done));
    }
}

void AgentImpl::sessionLost(const peer::Identity& who, const Status& why) {
    for (const Loaded& loaded : loadedBackends()) {
        if (RemoteSupport* const support = loaded->backend->remote(); support != nullptr) {
            support->peerLost({who.name, who.incarnation, false}, why);
        }
    }
}

void AgentImpl::endBackendConnections() {
    const Status why = Status::canceled("agent \"" + self().name + "\" has ended");
    sessionLost(self(), why);
    for (const std::string& name : peerNames()) {
        if (const std::shared_ptr<agent::Peer> known = peer(name); known != nullptr) {
            sessionLost(known->identity, why);
        }
    }
}

Status AgentImpl::notifySession(const peer::Identity& who, std::string_view message) {
    // The first one opens the session and reports what stands in the way.
    if (!engine()->ready(who)) {
        NIXL_RETURN_IF_ERROR(connectSession(who));
    }
    // The engine ends before the reactor and before `this`.
    return engine()->sendNotification(
        who, std::string(message), [this, name = who.name](const Status& status) {
            if (!status.ok() && shared_->addUndelivered(name, status)) {
                // A lost session takes many with it: they are told together.
                reactor_->startTimer(std::chrono::steady_clock::now() + kUndeliveredRest,
                                     [shared = shared_] { shared->reportUndelivered(); });
            }
        });
}

std::vector<Notification> AgentImpl::takeNotifications() {
    shared_->signal().drain();
    if (!shared_->hasNotifications()) {
        helpSessions();
    }
    std::vector<Notification> taken = shared_->takeNotifications();
    if (!taken.empty()) {
        shared_->forgetSenders([this](const peer::Identity& who) {
            const peer::Engine* const sessions = engine();
            return peer::findLocalAgent(who.incarnation) != nullptr ||
                   (sessions != nullptr && sessions->hasPeer(who));
        });
    }
    return taken;
}

void AgentImpl::endSessions() {
    if (peer::Engine* const sessions = engine(); sessions != nullptr) {
        sessions->stop();
        shared_->reportUndelivered();
    }
}

void AgentImpl::aboutToSleep() {
    if (peer::Engine* const sessions = engine(); sessions != nullptr) {
        sessions->aboutToSleep();
    }
}

void AgentImpl::sleepOnEvents() {
    if (peer::Engine* const sessions = engine(); sessions != nullptr) {
        sessions->sleepOnEvents();
    }
}

void AgentImpl::helpSessions() {
    if (peer::Engine* const sessions = engine(); sessions != nullptr) {
        sessions->progress();
    }
}

Status AgentImpl::deregisterFenced(const RegistrationList& list,
                                   const std::vector<unsigned>& backends,
                                   base::Deadline deadline) {
    peer::Engine* const sessions = engine();
    if (sessions == nullptr) {
        return shared_->regions().remove(list, backends, deadline);
    }
    memory::RemovalFence fence;
    fence.revoke = [sessions](const memory::Region& region) {
        sessions->revoke(region.id, region.generation);
    };
    fence.restore = [sessions](const memory::Region& region) {
        sessions->restore(region.id, region.generation);
    };
    fence.awaitQuiet = [sessions](base::Deadline limit) { return sessions->awaitQuiet(limit); };
    return shared_->regions().remove(list, backends, deadline, &fence);
}

}  // namespace nixl::detail
