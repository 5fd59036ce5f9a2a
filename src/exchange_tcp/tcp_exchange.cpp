// See tcp_exchange.h.
#include "exchange_tcp/tcp_exchange.h"

#include <future>
#include <vector>

#include "base/log.h"
#include "base/threads.h"
#include "connect/listener.h"
#include "exchange_tcp/address.h"
#include "exchange_tcp/client.h"

namespace nixl::exchange_tcp {

// Reactor thread only, but for what says otherwise.
class TcpExchangeImpl final : public peer::Admission,
                              public std::enable_shared_from_this<TcpExchangeImpl> {
  public:
    TcpExchangeImpl(std::string auth_key,
                    Reactor& reactor,
                    WorkPool& pool,
                    std::shared_ptr<exchange::LocalAgent> agent)
        : core_(std::make_shared<Core>(reactor, pool, std::move(agent))),
          authKey_(std::move(auth_key)),
          self_(core_->agent->self()),
          listener_(reactor,
                    *this,
                    {[this] { return handshakeSelf(); }, nullptr,
                     [this](peer::ConnectResult opened) { accept(std::move(opened)); }}) {
        core_->askAgain = [this](uint64_t connection) {
            if (const auto found = open_.find(connection); found != open_.end()) {
                found->second->fetch(true, nullptr);
            }
        };
    }

    // From any thread.
    Core& core() { return *core_; }
    const peer::HandshakeListener& listener() const { return listener_; }
    bool forked() const { return process_.forked(); }
    size_t connections() const { return count_.load(std::memory_order_relaxed); }

    void onReactor(const std::function<void()>& task);
    Status listen(std::vector<base::Fd> sockets);
    void stop(const Status& why);
    void add(const std::string& host, uint16_t port, ExchangeRequest request);
    void changed();
    void forget(const std::string& name);
    void refresh(const std::string& name);

    // peer::Admission
    bool exchanges() const override { return true; }
    std::optional<peer::Key> grantKey(peer::GrantId) override { return std::nullopt; }
    std::optional<base::Digest> sessionKey(const peer::Identity&) override { return std::nullopt; }
    std::optional<peer::Reject> checkIncoming(const peer::Identity&) override {
        return std::nullopt;
    }
    std::optional<peer::Earlier> earlier(const peer::Identity&) override { return std::nullopt; }
    std::optional<peer::Reject> admit(const peer::HandshakeResult&) override {
        return std::nullopt;
    }

    std::atomic<bool> tellChanges{false};  // changed() is on its way to the reactor

    // Accepted connections of one agent.
    static constexpr size_t kMaxAccepted = 4096;
    static constexpr std::chrono::seconds kRefreshPatience{5};

  private:
    using Place = std::pair<std::string, uint16_t>;
    peer::HandshakeSelf handshakeSelf() const { return {self_, authKey_, 0, {}}; }
    void accept(peer::ConnectResult opened);
    bool makeRoom();
    std::shared_ptr<ExchangeClient> clientOf(const Place& place);
    void enter(uint64_t number, std::shared_ptr<ExchangeConnection> connection);
    void leave(uint64_t number);

    const std::shared_ptr<Core> core_;
    const std::string authKey_;
    const peer::Identity self_;
    const base::ProcessMark process_;
    peer::HandshakeListener listener_;
    bool stopped_ = false;
    Status stoppedWhy_;
    uint64_t nextNumber_ = 1;
    std::map<uint64_t, std::shared_ptr<ExchangeConnection>> open_;  // all of them
    std::map<uint64_t, std::shared_ptr<ExchangeConnection>> accepted_;
    std::map<Place, std::shared_ptr<ExchangeClient>> clients_;
    std::map<std::string, Place> fetchedFrom_;  // by agent
    std::atomic<size_t> count_{0};
};

void TcpExchangeImpl::onReactor(const std::function<void()>& task) {
    if (core_->reactor.onThread()) {
        return task();
    }
    std::promise<void> done;
    core_->reactor.run([&] {
        task();
        done.set_value();
    });
    done.get_future().wait();
}

Status TcpExchangeImpl::listen(std::vector<base::Fd> sockets) {
    for (base::Fd& socket : sockets) {
        NIXL_RETURN_IF_ERROR(listener_.listen(std::move(socket)));
    }
    return {};
}

void TcpExchangeImpl::stop(const Status& why) {
    if (std::exchange(stopped_, true)) {
        return;
    }
    stoppedWhy_ = why;
    core_->gate->close();
    listener_.stop();
    for (const auto& [place, client] : std::exchange(clients_, {})) {
        client->stop(why);
    }
    for (const auto& [number, connection] : std::exchange(accepted_, {})) {
        connection->close(why);
    }
    open_.clear();
    count_ = 0;
}

void TcpExchangeImpl::enter(uint64_t number, std::shared_ptr<ExchangeConnection> connection) {
    open_[number] = std::move(connection);
    count_ = open_.size();
}

void TcpExchangeImpl::leave(uint64_t number) {
    open_.erase(number);
    accepted_.erase(number);
    count_ = open_.size();
}

// Those with whom there is nothing to do give way: whose metadata did not come over the
// connection, and who are not in the middle of something. Who has been silent for longest goes.
bool TcpExchangeImpl::makeRoom() {
    const bool crowded = ExchangeBudget::connections() > ExchangeBudget::idleConnections();
    if (accepted_.size() < kMaxAccepted && !crowded) {
        return true;
    }
    std::shared_ptr<ExchangeConnection> oldest;
    for (const auto& [number, connection] : accepted_) {
        if (connection->quiet() && !core_->owners.owns(number) &&
            (oldest == nullptr || connection->lastUsed() < oldest->lastUsed())) {
            oldest = connection;
        }
    }
    if (oldest != nullptr) {
        leave(oldest->number());
        oldest->close(Status::disconnected("others need the room"), true);
    }
    return oldest != nullptr || accepted_.size() < kMaxAccepted;
}

void TcpExchangeImpl::accept(peer::ConnectResult opened) {
    if (stopped_ || !makeRoom()) {
        return;
    }
    const uint64_t number = nextNumber_++;
    auto connection = std::make_shared<ExchangeConnection>(core_, number, std::move(opened), false);
    accepted_[number] = connection;
    enter(number, connection);
    connection->start([this, number](const Status& why, bool) {
        if (base::logs(LogLevel::DEBUG)) {
            base::log(LogLevel::DEBUG, "agent \"" + self_.name +
                                           "\": an exchange of metadata ends: " + why.message());
        }
        leave(number);
    });
}

std::shared_ptr<ExchangeClient> TcpExchangeImpl::clientOf(const Place& place) {
    auto& client = clients_[place];
    if (client == nullptr) {
        ExchangeClient::Calls calls;
        calls.self = [this] { return handshakeSelf(); };
        calls.number = [this] { return nextNumber_++; };
        calls.open = [this](uint64_t number, std::shared_ptr<ExchangeConnection> connection) {
            enter(number, std::move(connection));
        };
        calls.closed = [this](uint64_t number) { leave(number); };
        calls.idle = [this, place] {
            // Later: it is in the middle of a call.
            core_->reactor.run([weak = weak_from_this(), place] {
                const auto self = weak.lock();
                const auto found = self != nullptr ? self->clients_.find(place)
                                                   : decltype(self->clients_.begin())();
                if (self != nullptr && found != self->clients_.end() && found->second->idle()) {
                    self->clients_.erase(found);
                }
            });
        };
        client =
            std::make_shared<ExchangeClient>(core_, place.first, place.second, std::move(calls));
    }
    return client;
}

void TcpExchangeImpl::add(const std::string& host, uint16_t port, ExchangeRequest request) {
    if (stopped_) {
        return request.done(stoppedWhy_);
    }
    if (request.kind == ExchangeRequest::Kind::FETCH) {
        fetchedFrom_[request.name] = {host, port};
    }
    clientOf({host, port})->add(std::move(request));
}

void TcpExchangeImpl::changed() {
    tellChanges.store(false);
    // The list may change: a connection that is told of something may turn out to have ended.
    std::vector<std::shared_ptr<ExchangeConnection>> all;
    for (const auto& [number, connection] : open_) {
        if (connection->publishes()) {
            all.push_back(connection);
        }
    }
    for (const auto& connection : all) {
        connection->changed();
    }
}

void TcpExchangeImpl::forget(const std::string& name) {
    fetchedFrom_.erase(name);
    auto clients = clients_;
    for (const auto& [place, client] : clients) {
        client->forget(name);
    }
}

// Changes come by themselves over a connection that stands; where that has given way to others it
// is opened again.
void TcpExchangeImpl::refresh(const std::string& name) {
    const auto found = fetchedFrom_.find(name);
    if (found == fetchedFrom_.end() || stopped_) {
        return;
    }
    const auto client = clientOf(found->second);
    if (client->idle()) {
        ExchangeRequest request;
        request.name = name;
        request.deadline = Reactor::Clock::now() + kRefreshPatience;
        client->add(std::move(request));
    }
}

TcpExchange::TcpExchange(std::string auth_key,
                         Reactor& reactor,
                         WorkPool& pool,
                         std::shared_ptr<exchange::LocalAgent> agent)
    : impl_(std::make_shared<TcpExchangeImpl>(
          std::move(auth_key), reactor, pool, std::move(agent))) {}

TcpExchange::~TcpExchange() {
    stop(Status::canceled("the agent has ended"));
}

Result<uint16_t> TcpExchange::listen(const std::string& host, uint16_t port) {
    auto listening = listenAt(host, port);
    if (!listening.ok()) {
        return listening.status();
    }
    const Listening& told = listening.value();
    Status status;
    impl_->onReactor([&] { status = impl_->listen(std::move(listening.value().sockets)); });
    if (!status.ok()) {
        return status;
    }
    return told.port;
}

void TcpExchange::stop(const Status& why) {
    if (!impl_->forked()) {
        impl_->onReactor([&] { impl_->stop(why); });
        impl_->onReactor([] {});  // what was queued behind
    }
}

namespace {

ExchangeRequest requestOf(ExchangeRequest::Kind kind,
                          TcpExchange::Deadline deadline,
                          TcpExchange::Done done) {
    ExchangeRequest request;
    request.kind = kind;
    request.deadline = deadline;
    request.done = std::move(done);
    return request;
}

void addOn(const std::shared_ptr<TcpExchangeImpl>& impl,
           const std::string& host,
           uint16_t port,
           ExchangeRequest request) {
    impl->core().reactor.run(
        [impl, host, port, request = std::move(request)] { impl->add(host, port, request); });
}

}  // namespace

void TcpExchange::fetch(
    const std::string& name, const std::string& host, uint16_t port, Deadline deadline, Done done) {
    ExchangeRequest request = requestOf(ExchangeRequest::Kind::FETCH, deadline, std::move(done));
    request.name = name;
    addOn(impl_, host, port, std::move(request));
}

void TcpExchange::publish(const std::string& host, uint16_t port, Deadline deadline, Done done) {
    addOn(impl_, host, port, requestOf(ExchangeRequest::Kind::PUBLISH, deadline, std::move(done)));
}

void TcpExchange::send(
    std::string partial, const std::string& host, uint16_t port, Deadline deadline, Done done) {
    ExchangeRequest request = requestOf(ExchangeRequest::Kind::SEND, deadline, std::move(done));
    request.partial = std::make_shared<const std::string>(std::move(partial));
    addOn(impl_, host, port, std::move(request));
}

void TcpExchange::invalidate(const std::string& host, uint16_t port, Deadline deadline, Done done) {
    addOn(impl_, host, port,
          requestOf(ExchangeRequest::Kind::INVALIDATE, deadline, std::move(done)));
}

void TcpExchange::changed() {
    if (impl_->connections() != 0 && !impl_->tellChanges.exchange(true)) {
        impl_->core().reactor.run([impl = impl_] { impl->changed(); });
    }
}

void TcpExchange::added(const std::string& name) {
    impl_->core().owners.forget(name);
}

void TcpExchange::removed(const std::string& name) {
    impl_->core().owners.forget(name);
    impl_->core().reactor.run([impl = impl_, name] { impl->forget(name); });
}

void TcpExchange::refresh(const std::string& name) {
    impl_->core().reactor.run([impl = impl_, name] { impl->refresh(name); });
}

std::map<std::string, uint64_t> TcpExchange::stats() const {
    const Core& core = impl_->core();
    return {{"exchange_connections", impl_->connections()},
            {"exchange_refused", impl_->listener().refused()},
            {"exchange_served", core.served.load()},
            {"exchange_updates_sent", core.updatesSent.load()},
            {"exchange_updates_taken", core.updatesTaken.load()},
            {"exchange_bytes_in", core.bytesIn.load()},
            {"exchange_bytes_out", core.bytesOut.load()}};
}

}  // namespace nixl::exchange_tcp
