// See tcp_exchange.h.
#include "exchange_tcp/tcp_exchange.h"

#include <future>
#include <vector>

#include "base/log.h"
#include "base/threads.h"
#include "exchange_tcp/address.h"
#include "exchange_tcp/caller.h"
#include "peer/reception.h"

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
          reception_(reactor,
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
    const peer::Reception& reception() const { return reception_; }
    bool forked() const { return process_.forked(); }
    size_t connections() const { return count_.load(std::memory_order_relaxed); }

    void onReactor(const std::function<void()>& task);
    Status listen(std::vector<base::Fd> sockets);
    void stop(const Status& why);
    void add(const std::string& host, uint16_t port, Want want);
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
    std::shared_ptr<Caller> callerOf(const Place& place);
    void enter(uint64_t number, std::shared_ptr<Conversation> conversation);
    void leave(uint64_t number);

    const std::shared_ptr<Core> core_;
    const std::string authKey_;
    const peer::Identity self_;
    const base::ProcessMark process_;
    peer::Reception reception_;
    bool stopped_ = false;
    Status stoppedWhy_;
    uint64_t nextNumber_ = 1;
    std::map<uint64_t, std::shared_ptr<Conversation>> open_;  // all of them
    std::map<uint64_t, std::shared_ptr<Conversation>> accepted_;
    std::map<Place, std::shared_ptr<Caller>> callers_;
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
        NIXL_RETURN_IF_ERROR(reception_.listen(std::move(socket)));
    }
    return {};
}

void TcpExchangeImpl::stop(const Status& why) {
    if (std::exchange(stopped_, true)) {
        return;
    }
    stoppedWhy_ = why;
    reception_.stop();
    for (const auto& [place, caller] : std::exchange(callers_, {})) {
        caller->stop(why);
    }
    for (const auto& [number, conversation] : std::exchange(accepted_, {})) {
        conversation->close(why);
    }
    open_.clear();
    count_ = 0;
}

void TcpExchangeImpl::enter(uint64_t number, std::shared_ptr<Conversation> conversation) {
    open_[number] = std::move(conversation);
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
    const bool crowded = Room::connections() > Room::idleConnections();
    if (accepted_.size() < kMaxAccepted && !crowded) {
        return true;
    }
    std::shared_ptr<Conversation> oldest;
    for (const auto& [number, conversation] : accepted_) {
        if (conversation->quiet() && !core_->owners.owns(number) &&
            (oldest == nullptr || conversation->lastUsed() < oldest->lastUsed())) {
            oldest = conversation;
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
    auto conversation = std::make_shared<Conversation>(core_, number, std::move(opened), false);
    accepted_[number] = conversation;
    enter(number, conversation);
    conversation->start([this, number](const Status& why, bool) {
        if (base::logs(LogLevel::DEBUG)) {
            base::log(LogLevel::DEBUG, "agent \"" + self_.name +
                                           "\": an exchange of metadata ends: " + why.message());
        }
        leave(number);
    });
}

std::shared_ptr<Caller> TcpExchangeImpl::callerOf(const Place& place) {
    auto& caller = callers_[place];
    if (caller == nullptr) {
        Caller::Calls calls;
        calls.self = [this] { return handshakeSelf(); };
        calls.number = [this] { return nextNumber_++; };
        calls.open = [this](uint64_t number, std::shared_ptr<Conversation> conversation) {
            enter(number, std::move(conversation));
        };
        calls.closed = [this](uint64_t number) { leave(number); };
        calls.idle = [this, place] {
            // Later: it is in the middle of a call.
            core_->reactor.run([weak = weak_from_this(), place] {
                const auto self = weak.lock();
                const auto found = self != nullptr ? self->callers_.find(place)
                                                   : decltype(self->callers_.begin())();
                if (self != nullptr && found != self->callers_.end() && found->second->idle()) {
                    self->callers_.erase(found);
                }
            });
        };
        caller = std::make_shared<Caller>(core_, place.first, place.second, std::move(calls));
    }
    return caller;
}

void TcpExchangeImpl::add(const std::string& host, uint16_t port, Want want) {
    if (stopped_) {
        return want.done(stoppedWhy_);
    }
    if (want.kind == Want::Kind::FETCH) {
        fetchedFrom_[want.name] = {host, port};
    }
    callerOf({host, port})->add(std::move(want));
}

void TcpExchangeImpl::changed() {
    tellChanges.store(false);
    // The list may change: a connection that is told of something may turn out to have ended.
    std::vector<std::shared_ptr<Conversation>> all;
    for (const auto& [number, conversation] : open_) {
        if (conversation->publishes()) {
            all.push_back(conversation);
        }
    }
    for (const auto& conversation : all) {
        conversation->changed();
    }
}

void TcpExchangeImpl::forget(const std::string& name) {
    fetchedFrom_.erase(name);
    auto callers = callers_;
    for (const auto& [place, caller] : callers) {
        caller->forget(name);
    }
}

// Changes come by themselves over a connection that stands; where that has given way to others it
// is opened again.
void TcpExchangeImpl::refresh(const std::string& name) {
    const auto found = fetchedFrom_.find(name);
    if (found == fetchedFrom_.end() || stopped_) {
        return;
    }
    const auto caller = callerOf(found->second);
    if (caller->idle()) {
        Want want;
        want.name = name;
        want.deadline = Reactor::Clock::now() + kRefreshPatience;
        caller->add(std::move(want));
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

Want wantOf(Want::Kind kind, TcpExchange::Deadline deadline, TcpExchange::Done done) {
    Want want;
    want.kind = kind;
    want.deadline = deadline;
    want.done = std::move(done);
    return want;
}

void addOn(const std::shared_ptr<TcpExchangeImpl>& impl,
           const std::string& host,
           uint16_t port,
           Want want) {
    impl->core().reactor.run(
        [impl, host, port, want = std::move(want)] { impl->add(host, port, want); });
}

}  // namespace

void TcpExchange::fetch(
    const std::string& name, const std::string& host, uint16_t port, Deadline deadline, Done done) {
    Want want = wantOf(Want::Kind::FETCH, deadline, std::move(done));
    want.name = name;
    addOn(impl_, host, port, std::move(want));
}

void TcpExchange::publish(const std::string& host, uint16_t port, Deadline deadline, Done done) {
    addOn(impl_, host, port, wantOf(Want::Kind::PUBLISH, deadline, std::move(done)));
}

void TcpExchange::send(
    std::string partial, const std::string& host, uint16_t port, Deadline deadline, Done done) {
    Want want = wantOf(Want::Kind::SEND, deadline, std::move(done));
    want.partial = std::make_shared<const std::string>(std::move(partial));
    addOn(impl_, host, port, std::move(want));
}

void TcpExchange::invalidate(const std::string& host, uint16_t port, Deadline deadline, Done done) {
    addOn(impl_, host, port, wantOf(Want::Kind::INVALIDATE, deadline, std::move(done)));
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
            {"exchange_refused", impl_->reception().refused()},
            {"exchange_served", core.served.load()},
            {"exchange_updates_sent", core.updatesSent.load()},
            {"exchange_updates_taken", core.updatesTaken.load()},
            {"exchange_bytes_in", core.bytesIn.load()},
            {"exchange_bytes_out", core.bytesOut.load()}};
}

}  // namespace nixl::exchange_tcp
