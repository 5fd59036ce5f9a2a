// AgentImpl: metadata exchanged with listeners and central stores, and what they need of the agent.
#include <algorithm>

#include "agent/agent_impl.h"
#include "agent/auth_key.h"
#include "base/log.h"

namespace nixl::detail {

using exchange::Known;
using exchange::Snapshot;
using exchange_tcp::TcpExchange;

namespace {

// Whoever polls for what is not known yet makes the agent ask again, this often at most.
constexpr std::chrono::milliseconds kRefreshPause{20};

// The agent as an exchange sees it. Calls count as calls of the agent: its end waits for them.
class AgentSide final : public exchange::LocalAgent {
  public:
    explicit AgentSide(const std::shared_ptr<AgentImpl>& impl) : impl_(impl), self_(impl->self()) {}

    const peer::Identity& self() const override { return self_; }
    uint64_t version() const override {
        const auto impl = impl_.lock();
        return impl != nullptr ? impl->metadataVersion() : 0;
    }
    Result<Snapshot> snapshot(uint64_t since) override {
        return inside<Result<Snapshot>>([&](AgentImpl& impl) { return impl.metadataSince(since); });
    }
    std::optional<Known> known(const std::string& name) const override {
        const auto impl = impl_.lock();
        return impl != nullptr ? impl->knownPeer(name) : std::nullopt;
    }
    Result<Taken> take(std::string_view blob,
                       const peer::Identity& from,
                       bool needs_grant) override {
        return inside<Result<Taken>>([&](AgentImpl& impl) -> Result<Taken> {
            Result<metadata::Blob> decoded = metadata::decodeBlob(blob);
            if (!decoded.ok()) {
                return decoded.status();
            }
            if (decoded.value().name != from.name ||
                decoded.value().incarnation != from.incarnation) {
                return Status::notAllowed("agent \"" + from.name +
                                          "\" hands over metadata of another one, \"" +
                                          decoded.value().name + "\"");
            }
            return impl.takeBlob(std::move(decoded).value(), needs_grant);
        });
    }
    void drop(const peer::Identity& who) override {
        static_cast<void>(inside<Status>([&](AgentImpl& impl) {
                              impl.dropPeer(who);
                              return Status();
                          }).ok());
    }

  private:
    template <typename Out, typename Call>
    Out inside(const Call& call) const {
        if (const auto impl = impl_.lock(); impl != nullptr) {
            const agent::CallGate::Call gate(impl->gate());
            if (const Status status = impl->usable(); !status.ok()) {
                return status;
            }
            return call(*impl);
        }
        return Status::canceled("the agent has ended");
    }

    const std::weak_ptr<AgentImpl> impl_;
    const peer::Identity self_;
};

std::string placeText(const MetadataPlace& place) {
    const bool six = place.host.find(':') != std::string::npos && place.host.front() != '[';
    return (six ? "[" + place.host + "]" : place.host) + ":" + std::to_string(place.port);
}

}  // namespace

Status AgentImpl::startExchange() {
    if (!config_.enableListenThread) {
        return {};
    }
    NIXL_RETURN_IF_ERROR(ensureExchange());
    Result<uint16_t> port = exchange()->listen(config_.listenHost, config_.listenPort);
    if (!port.ok()) {
        return {port.status().code(), "agent \"" + self().name + "\": " + port.status().message(),
                port.status().systemErrno()};
    }
    listenPort_ = port.value();
    if (config_.listenHost.empty() && config_.authKey.empty() && config_.authKeyFile.empty()) {
        base::log(LogLevel::WARN,
                  "agent \"" + self().name + "\" listens on port " + std::to_string(listenPort_) +
                      " of all addresses without a key: whoever reaches it can read its metadata "
                      "and with it its memory; set auth_key (or auth_key_file) for all agents, or "
                      "listen_host=\"127.0.0.1\" where they are on one host");
    }
    return {};
}

std::shared_ptr<exchange::LocalAgent> AgentImpl::localAgent() {
    return std::make_shared<AgentSide>(shared_from_this());
}

Status AgentImpl::ensureExchange() {
    MutexLock lock(engineMutex_);
    if (exchange_ != nullptr) {
        return {};
    }
    Result<std::string> key = agent::readAuthKey(config_);
    if (!key.ok()) {
        return key.status();
    }
    exchange_ =
        std::make_unique<TcpExchange>(std::move(key).value(), *reactor_, *pool_, localAgent());
    exchangeReady_.store(exchange_.get(), std::memory_order_release);
    return {};
}

void AgentImpl::endExchange() {
    const Status why = Status::canceled("agent \"" + self().name + "\" has been closed");
    if (TcpExchange* const direct = exchange(); direct != nullptr) {
        direct->stop(why);
    }
    if (central_ != nullptr) {
        central_->end();
    }
    fetches_.endAll(why);
}

Status AgentImpl::checkPlace(const MetadataPlace& place) const {
    if (place.host.find('\0') != std::string::npos || place.host.size() > 255) {
        return Status::invalidParam("agent \"" + self().name +
                                    "\": a host name of 1 to 255 bytes without NUL is needed");
    }
    if (place.port == 0) {
        return Status::invalidParam("agent \"" + self().name + "\": host \"" + place.host +
                                    "\" with port 0: the port of a listener is needed");
    }
    return {};
}

base::Deadline AgentImpl::deadlineOf(const MetadataPlace& place) const {
    return base::deadlineAfter(place.patience.count() < 0
                                   ? std::chrono::nanoseconds(config_.peerTimeout)
                                   : place.patience);
}

// Nobody asks how these went, so the log tells it.
AgentImpl::Done AgentImpl::warnOfFailure(const char* what,
                                         const MetadataPlace& place,
                                         Done done) const {
    return [text = "agent \"" + self().name + "\" cannot " + what + " " + placeText(place) + ": ",
            done = std::move(done)](const Status& status) {
        if (!status.ok() && status.code() != ErrorCode::CANCELED) {
            base::log(LogLevel::WARN, text + status.message());
        }
        if (done) {
            done(status);
        }
    };
}

static Status noStore(const std::string& agent, const char* call) {
    return Status::invalidParam("agent \"" + agent + "\": " + call +
                                " without an address needs a central store: set "
                                "NIXL_ETCD_ENDPOINTS or metadata_store, or name the address of a "
                                "listener");
}

Status AgentImpl::fetchMetadata(const std::string& name, const MetadataPlace& place, Done done) {
    if (name.empty()) {
        return Status::invalidParam("agent \"" + self().name +
                                    "\": fetch of an agent without name");
    }
    if (place.host.empty()) {
        return central_ != nullptr ? fetchCentral(name, place, std::move(done))
                                   : noStore(self().name, "fetch_remote_metadata");
    }
    NIXL_RETURN_IF_ERROR(checkPlace(place));
    NIXL_RETURN_IF_ERROR(ensureExchange());
    exchange()->fetch(name, place.host, place.port, deadlineOf(place),
                      fetches_.begin(name, std::move(done)));
    return {};
}

Status AgentImpl::publishMetadata(const MetadataPlace& place, Done done) {
    if (place.host.empty()) {
        return central_ != nullptr ? publishCentral(place, std::move(done))
                                   : noStore(self().name, "send_local_metadata");
    }
    NIXL_RETURN_IF_ERROR(checkPlace(place));
    NIXL_RETURN_IF_ERROR(ensureExchange());
    exchange()->publish(place.host, place.port, deadlineOf(place),
                        warnOfFailure("send its metadata to", place, std::move(done)));
    return {};
}

Status AgentImpl::sendPartialMetadata(const DescriptorList& list,
                                      bool connection_info,
                                      const Names& backends,
                                      const MetadataPlace& place,
                                      Done done) {
    if (place.host.empty()) {
        return central_ != nullptr
                   ? partCentral(list, connection_info, backends, place, std::move(done))
                   : noStore(self().name, "send_partial_agent_metadata");
    }
    NIXL_RETURN_IF_ERROR(checkPlace(place));
    Result<std::string> blob = partialMetadata(list, connection_info, backends);
    if (!blob.ok()) {
        return blob.status();
    }
    NIXL_RETURN_IF_ERROR(ensureExchange());
    exchange()->send(std::move(blob).value(), place.host, place.port, deadlineOf(place),
                     warnOfFailure("send a part of its metadata to", place, std::move(done)));
    return {};
}

Status AgentImpl::invalidateMetadata(const MetadataPlace& place, Done done) {
    if (place.host.empty()) {
        return central_ != nullptr ? invalidateCentral(place, done)
                                   : noStore(self().name, "invalidate_local_metadata");
    }
    NIXL_RETURN_IF_ERROR(checkPlace(place));
    NIXL_RETURN_IF_ERROR(ensureExchange());
    exchange()->invalidate(place.host, place.port, deadlineOf(place),
                           warnOfFailure("take its metadata back at", place, std::move(done)));
    return {};
}

Result<bool> AgentImpl::checkMetadata(const std::string& name, const DescriptorList* list) {
    Result<bool> has = hasPeer(name, list);
    if (has.ok() && !has.value()) {
        NIXL_RETURN_IF_ERROR(fetches_.failure(name));
    }
    return has;
}

Result<Snapshot> AgentImpl::metadataSince(uint64_t since) {
    MutexLock lock(snapshotMutex_);
    const uint64_t version = metadataVersion();  // what comes meanwhile is told once more
    std::optional<std::vector<uint64_t>> changed;
    if (since != 0) {
        changed = shared_->regions().changedSince(since);
    }
    if (!changed && snapshot_.version == version) {
        return snapshot_;
    }
    metadata::Blob blob;
    blob.grant = shared_->grant();
    blob.version = version;
    if (changed) {
        blob.partial = true;
        blob.connection = false;
        blob.base = since;
    }
    NIXL_RETURN_IF_ERROR(fillBlob(blob, loadedBackends(), changed ? &*changed : nullptr));
    if (changed) {
        std::vector<uint64_t> there;
        there.reserve(blob.regions.size());
        for (const memory::RemoteRegion& region : blob.regions) {
            there.push_back(region.id);
        }
        std::sort(there.begin(), there.end());
        std::set_difference(changed->begin(), changed->end(), there.begin(), there.end(),
                            std::back_inserter(blob.removed));
    }
    Snapshot made{std::make_shared<const std::string>(metadata::encodeBlob(blob)), version};
    if (!changed) {
        snapshot_ = made;
    }
    return made;
}

std::optional<Known> AgentImpl::knownPeer(const std::string& name) const {
    const std::shared_ptr<agent::Peer> found = peer(name);
    return found != nullptr ? std::optional(Known{found->identity, found->version}) : std::nullopt;
}

void AgentImpl::dropPeer(const peer::Identity& who) {
    const std::shared_ptr<agent::Peer> found = peer(who.name);
    if (found != nullptr && found->identity == who) {
        static_cast<void>(removePeer(who.name).ok());
    }
}

void AgentImpl::metadataChanged() {
    if (central_ != nullptr) {
        central_->metadataChanged();
    }
    if (TcpExchange* const direct = exchange(); direct != nullptr) {
        direct->changed();
    }
}

void AgentImpl::addedByHand(const std::string& name) {
    if (central_ != nullptr) {
        central_->remember(name);
    }
    if (TcpExchange* const direct = exchange(); direct != nullptr) {
        direct->added(name);
    }
}

void AgentImpl::removedByHand(const std::string& name) {
    fetches_.forget(name);
    if (central_ != nullptr) {
        central_->forget(name);
    }
    if (TcpExchange* const direct = exchange(); direct != nullptr) {
        direct->removed(name);
    }
}

void AgentImpl::refreshPeer(const std::string& name) {
    TcpExchange* const direct = exchange();
    if (direct == nullptr && central_ == nullptr) {
        return;
    }
    const int64_t now = std::chrono::steady_clock::now().time_since_epoch().count();
    int64_t before = refreshed_.load(std::memory_order_relaxed);
    if (now - before > std::chrono::nanoseconds(kRefreshPause).count() &&
        refreshed_.compare_exchange_strong(before, now)) {
        if (direct != nullptr) {
            direct->refresh(name);
        }
        if (central_ != nullptr) {
            central_->refresh(name);
        }
    }
}

}  // namespace nixl::detail
