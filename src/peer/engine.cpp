// See engine.h and engine_impl.h.
#include "peer/engine.h"

#include <algorithm>
#include <cerrno>
#include <future>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/system_error.h"
#include "peer/engine_impl.h"
#include "peer/network_lanes.h"

namespace nixl::peer {

namespace {

std::string hexText(std::span<const uint8_t> bytes) {
    std::string out;
    for (const uint8_t byte : bytes) {
        const char* const digits = "0123456789abcdef";
        out += digits[byte >> 4];
        out += digits[byte & 15];
    }
    return out;
}

Key randomKey() {
    Key key{};
    base::randomBytes(key);
    return key;
}

unsigned dataThreads() {
    return std::clamp(std::thread::hardware_concurrency(), 1U, 4U);
}

}  // namespace

EngineImpl::EngineImpl(const EngineConfig& engine_config,
                       Reactor& its_reactor,
                       WorkPool& its_pool,
                       NetworkAccess& its_access)
    : config(engine_config),
      reactor(its_reactor),
      pool(its_pool),
      access(its_access),
      bootId(base::bootId()),
      pollSet(reactor, config.pollDistance),
      dataLoop(dataThreads(), pollSet, std::chrono::microseconds(config.busyPollMicroseconds)),
      cookie_(randomKey()),
      listener_(reactor,
                *this,
                {[this] { return handshakeSelf(); },
                 [this](const base::Fd& socket) { return welcome(socket); },
                 [this](ConnectResult connection) { opened(std::move(connection)); }}) {}

EngineImpl::~EngineImpl() {
    if (!process.forked() && !endpoints_.path.empty()) {
        unlink(endpoints_.path.c_str());
    }
}

HandshakeSelf EngineImpl::handshakeSelf() const {
    return {config.self, config.authKey, reinterpret_cast<uint64_t>(cookie_.data()), cookie_};
}

Status EngineImpl::start() {
    if (!config.authKey.empty() && config.authKey.size() < 16) {
        return Status::invalidParam("auth_key of " + std::to_string(config.authKey.size()) +
                                    " bytes: at least 16 are needed");
    }
    endpoints_.bootId = bootId;
    endpoints_.uid = geteuid();
    const std::string random = hexText(randomKey());
    auto abstract = base::listenAbstract("nixl-" + random);
    if (abstract.ok()) {
        endpoints_.abstract = "nixl-" + random;
        NIXL_RETURN_IF_ERROR(listener_.listen(std::move(abstract).value()));
    }
    if (!config.socketDir.empty()) {
        if (mkdir(config.socketDir.c_str(), 0700) < 0 && errno != EEXIST) {
            return base::systemError("socket_dir " + config.socketDir, errno);
        }
        const std::string path = config.socketDir + "/nixl-" + random + ".sock";
        auto by_path = base::listenPath(path);
        if (!by_path.ok()) {
            return by_path.status();
        }
        endpoints_.path = path;
        NIXL_RETURN_IF_ERROR(listener_.listen(std::move(by_path).value()));
    }
    auto tcp = base::listenTcp(endpoints_.port);
    if (tcp.ok()) {
        endpoints_.addresses = base::hostAddresses(Endpoints::kMaxAddresses);
        NIXL_RETURN_IF_ERROR(listener_.listen(std::move(tcp).value()));
    } else if (!listener_.listens()) {
        return tcp.status();
    }
    return {};
}

std::string EngineImpl::connectionInfo() {
    return endpoints_.encode();
}

void EngineImpl::onReactor(const std::function<void()>& task) {
    if (reactor.onThread()) {
        task();
        return;
    }
    std::promise<void> done;
    reactor.run([&] {
        task();
        done.set_value();
    });
    done.get_future().wait();
}

void EngineImpl::stop() {
    if (process.forked()) {
        return;
    }
    const Status why = Status::canceled("agent \"" + config.self.name + "\" has been closed");
    onReactor([&] {
        {
            const MutexLock lock(mutex_);
            stopped_ = true;  // no link is made after this
        }
        listener_.stop();
        for (const auto& link : links()) {
            link->close(why, "the agent has been closed");
        }
    });
    onReactor([] {});  // the closings, queued behind
    dataLoop.stop(why);
    pollSet.stop();
    const MutexLock lock(mutex_);
    links_.clear();
}

std::shared_ptr<Link> EngineImpl::find(std::string_view name, const Key& incarnation) {
    const MutexLock lock(mutex_);
    const auto found = links_.find(std::pair<std::string_view, const Key&>(name, incarnation));
    return found == links_.end() ? nullptr : found->second;
}

std::shared_ptr<Link> EngineImpl::findOrMake(const Identity& peer) {
    const MutexLock lock(mutex_);
    if (stopped_) {
        return nullptr;
    }
    auto& link = links_[LinkKey(peer.name, peer.incarnation)];
    if (link == nullptr) {
        link = Link::make(*this, peer);
    }
    return link;
}

void EngineImpl::forget(const std::shared_ptr<Link>& link) {
    const MutexLock lock(mutex_);
    const auto found = links_.find(LinkKey(link->peer().name, link->peer().incarnation));
    if (found != links_.end() && found->second == link) {
        links_.erase(found);
    }
}

void EngineImpl::forgetUnknown(const std::shared_ptr<Link>& link) {
    const MutexLock lock(mutex_);  // nobody tells of it meanwhile
    const auto found = links_.find(LinkKey(link->peer().name, link->peer().incarnation));
    if (found != links_.end() && found->second == link && !link->hasMetadata()) {
        links_.erase(found);
    }
}

Status EngineImpl::setMetadata(const Identity& peer,
                               std::optional<Endpoints> endpoints,
                               GrantsPtr grants) {
    const MutexLock lock(mutex_);
    if (stopped_) {
        return Status::canceled("the agent ends");
    }
    auto& link = links_[LinkKey(peer.name, peer.incarnation)];
    if (link == nullptr) {
        link = Link::make(*this, peer);
    }
    link->setMetadata(std::move(endpoints), std::move(grants));
    return {};
}

std::vector<std::shared_ptr<Link>> EngineImpl::links() {
    std::vector<std::shared_ptr<Link>> all;
    const MutexLock lock(mutex_);
    all.reserve(links_.size());
    for (const auto& [key, link] : links_) {
        all.push_back(link);
    }
    return all;
}

std::optional<Key> EngineImpl::grantKey(GrantId grant) {
    return access.grantKey(grant);
}

std::optional<base::Digest> EngineImpl::sessionKey(const Identity& peer) {
    const auto link = find(peer);
    return link != nullptr ? link->sessionKey() : std::nullopt;
}

std::optional<Reject> EngineImpl::checkIncoming(const Identity& peer) {
    {
        const MutexLock lock(mutex_);
        if (links_.size() >= kMaxLinks) {
            return Reject{RejectCode::LIMIT, "too many peers"};
        }
    }
    return ownConnectionStands(find(peer).get(), peer);
}

// Both dial at once: the connection of the smaller incarnation is the one.
std::optional<Reject> EngineImpl::ownConnectionStands(const Link* link,
                                                      const Identity& peer) const {
    if (link != nullptr && link->dialling() && config.self.incarnation < peer.incarnation) {
        return Reject{RejectCode::DUPLICATE, "both connect at once"};
    }
    return std::nullopt;
}

std::optional<Earlier> EngineImpl::earlier(const Identity& peer) {
    const auto link = find(peer);
    return link != nullptr ? link->earlier() : std::nullopt;
}

std::optional<Reject> EngineImpl::admit(const HandshakeResult& result) {
    const auto own = find(result.peer);
    const bool trusted = result.proven || (own != nullptr && own->hasMetadata());
    if (own != nullptr && own->up() && !result.resumed && !result.proven) {
        // It may be about to notice the end of that one, and tries again.
        return Reject{RejectCode::DUPLICATE, "this agent has a live session already"};
    }
    // The own one may have come through since the peer's HELLO. Were both admitted, each side would
    // close its own for the other's, and none would be left.
    if (auto no = ownConnectionStands(own.get(), result.peer)) {
        return no;
    }
    for (const auto& link : links()) {
        if (link == own || link->peer().name != result.peer.name || !link->up()) {
            continue;
        }
        if (!trusted) {
            return Reject{RejectCode::NAME_TAKEN,
                          "an agent of this name has a live session; a restarted one needs the "
                          "auth_key, or must be added here first"};
        }
        link->lost(Status::disconnected("agent \"" + result.peer.name +
                                        "\" has been restarted under its name"));
    }
    return std::nullopt;
}

// Processes of other users reach the unix socket too; without a key they are unknown peers.
bool EngineImpl::welcome(const base::Fd& socket) const {
    const base::SocketPeer user = base::socketPeer(socket.get());
    if (!user.local || user.uid == geteuid() || user.uid == 0 || !config.authKey.empty()) {
        return true;
    }
    base::ByteWriter out;
    const size_t begin = beginFrame(out, FrameType::REJECT);
    Reject{RejectCode::AUTHENTICATION, "a process of another user needs the auth_key"}.encode(out);
    endFrame(out, begin);
    static_cast<void>(!::send(socket.get(), out.bytes().data(), out.size(), MSG_NOSIGNAL));
    return false;
}

void EngineImpl::opened(ConnectResult connection) {
    const HandshakeResult& result = connection.result;
    if (result.kind == ConnectionKind::DATA) {
        if (const auto link = find(result.peer)) {
            link->serve(std::move(connection));
        }
        return;
    }
    if (const auto link = findOrMake(result.peer)) {
        link->adopt(std::move(connection));
    }
}

Engine::Engine(std::shared_ptr<EngineImpl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Engine>> Engine::create(const EngineConfig& config,
                                               Reactor& reactor,
                                               WorkPool& pool,
                                               NetworkAccess& access) {
    auto impl = std::make_shared<EngineImpl>(config, reactor, pool, access);
    Status status;
    impl->onReactor([&] {
        status = impl->start();
        if (!status.ok()) {
            impl->stop();
        }
    });
    if (!status.ok()) {
        return status;
    }
    return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::~Engine() {
    impl_->stop();
}

void Engine::stop() {
    impl_->stop();
}

std::string Engine::connectionInfo() {
    return impl_->connectionInfo();
}

Status Engine::addPeer(const Identity& peer, std::string_view connection_info, GrantsPtr grants) {
    std::optional<Endpoints> endpoints;
    if (!connection_info.empty()) {
        auto decoded = Endpoints::decode(connection_info);
        if (!decoded.ok()) {
            return decoded.status();
        }
        endpoints = std::move(decoded).value();
    }
    return impl_->setMetadata(peer, std::move(endpoints), std::move(grants));
}

void Engine::removePeer(const Identity& peer) {
    const auto link = impl_->find(peer);
    if (link != nullptr) {
        impl_->forget(link);
        link->close(Status::disconnected("agent \"" + peer.name + "\" has been removed"),
                    "the peer removed this agent");
    }
}

std::optional<Identity> Engine::sessionOf(std::string_view name) {
    for (const auto& link : impl_->links()) {
        if (link->peer().name == name && link->up()) {
            return link->peer();
        }
    }
    return std::nullopt;
}

void Engine::connect(const Identity& peer, Done done) {
    const auto link = impl_->find(peer);
    if (link == nullptr) {
        return done(Status::notFound("agent \"" + peer.name + "\" is unknown"));
    }
    link->whenReady(std::move(done));
}

Status Engine::sendNotification(const Identity& peer, std::string message, Done done) {
    const auto link = impl_->find(peer);
    if (link == nullptr) {
        return Status::notFound("agent \"" + peer.name +
                                "\" is unknown and has no session with this one");
    }
    return link->send(std::move(message), std::move(done));
}

std::vector<std::unique_ptr<Lane>> Engine::lanes(const LaneOptions& options) {
    return makeNetworkLanes(impl_, options);
}

void Engine::revoke(uint64_t region_id, uint32_t generation) {
    impl_->revoke(region_id, generation);
}

void Engine::restore(uint64_t region_id, uint32_t generation) {
    impl_->restore(region_id, generation);
}

Status Engine::awaitQuiet(base::Deadline deadline) {
    return impl_->awaitQuiet(deadline);
}

void EngineImpl::revoke(uint64_t region_id, uint32_t generation) {
    hostTarget.revoke(region_id, generation);
    const MutexLock lock(mutex_);
    if (!links_.empty()) {
        revoked_.emplace_back(region_id, generation);
    }
}

void EngineImpl::restore(uint64_t region_id, uint32_t generation) {
    hostTarget.restore(region_id, generation);
    const MutexLock lock(mutex_);
    std::erase(revoked_, std::pair(region_id, generation));
}

Status EngineImpl::awaitQuiet(base::Deadline deadline) {
    NIXL_RETURN_IF_ERROR(hostTarget.awaitQuiet(deadline));
    std::vector<std::pair<uint64_t, uint32_t>> revoked;
    {
        const MutexLock lock(mutex_);
        revoked.swap(revoked_);
    }
    // Who has mapped them keeps their memory alive until told.
    if (!revoked.empty()) {
        for (const auto& link : links()) {
            link->host().announceRevoked(revoked);
        }
    }
    return {};
}

void Engine::progress() {
    impl_->pollSet.progress();
}

std::shared_ptr<Pollers> Engine::pollers() {
    return {impl_, &impl_->pollSet};
}

void Engine::aboutToSleep() {
    impl_->pollSet.aboutToSleep();
}

void Engine::sleepOnEvents() {
    impl_->pollSet.sleepOnEvents();
}

bool Engine::ready(const Identity& peer) const {
    const auto link = impl_->find(peer);
    return link != nullptr && link->ready();
}

bool Engine::hasPeer(const Identity& peer) const {
    return impl_->find(peer) != nullptr;
}

std::map<std::string, uint64_t> Engine::stats() const {
    const auto links = impl_->links();
    Link::Counts all;
    for (const auto& link : links) {
        const Link::Counts counts = link->counts();
        all.connections += counts.connections;
        all.notifications += counts.notifications;
    }
    return {{"sessions_opened", impl_->sessions.load()},
            {"connections_refused", impl_->listener().refused()},
            {"peers", links.size()},
            {"connections", all.connections},
            {"notifications_waiting", all.notifications},
            {"stream_spins", impl_->dataLoop.busyPoll().spins()},
            {"stream_sleeps", impl_->dataLoop.busyPoll().sleeps()}};
}

}  // namespace nixl::peer
