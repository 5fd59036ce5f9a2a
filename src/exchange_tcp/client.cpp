// See client.h.
#include "exchange_tcp/client.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "base/threads.h"
#include "exchange_tcp/address.h"

namespace nixl::exchange_tcp {

using Clock = Reactor::Clock;

namespace {

// How long one attempt to connect may take.
constexpr std::chrono::milliseconds kDialPatience{3000};

// Whether trying again may help.
bool mayPass(const peer::ConnectFailure& why) {
    if (why.code) {
        return *why.code == peer::RejectCode::LIMIT || *why.code == peer::RejectCode::CLOSING;
    }
    const int error = why.status.systemErrno();
    return !why.refused && (error == 0 || error == ECONNRESET || error == EPIPE ||
                            error == EAGAIN || error == EMFILE || error == ETIMEDOUT);
}

}  // namespace

template <typename Call>
auto ExchangeClient::weakly(Call call) {
    return [weak = weak_from_this(), call = std::move(call)](auto&&... arguments) {
        if (const auto self = weak.lock(); self != nullptr && !self->stopped_) {
            call(*self, std::forward<decltype(arguments)>(arguments)...);
        }
    };
}

ExchangeClient::ExchangeClient(std::shared_ptr<Core> core,
                               std::string host,
                               uint16_t port,
                               Calls calls)
    : core_(std::move(core)), host_(std::move(host)), port_(port), calls_(std::move(calls)) {}

ExchangeClient::~ExchangeClient() = default;

Status ExchangeClient::located(const Status& why) const {
    std::string text = why.message();
    // Where the cause already names the place it need not be said twice.
    const std::string place = addressText(host_, port_);
    if (text.find(place) == std::string::npos) {
        text = "metadata exchange with " + place + ": " + text;
    }
    const int error = why.systemErrno() != 0             ? why.systemErrno()
                      : why.code() == ErrorCode::TIMEOUT ? ETIMEDOUT
                                                         : 0;
    return {why.code(), std::move(text), error};
}

void ExchangeClient::add(ExchangeRequest request) {
    stopTimer(restTimer_);
    asked_[nextTicket_++] = {std::move(request), false};
    armDeadline();
    if (connection_ != nullptr) {
        submit();
    } else if (dialer_ == nullptr && !resolving_ && !queued_) {
        stopTimer(pauseTimer_);
        pause_ = kFirstPause;
        begin();
    }
}

void ExchangeClient::begin() {
    if (stopped_ || resolving_ || queued_ || dialer_ != nullptr || connection_ != nullptr) {
        return;
    }
    if (auto numeric = numericTargets(host_, port_)) {
        return dial(*std::move(numeric));
    }
    resolving_ = true;
    // A name server may not answer for long: neither the pool nor the agent's end waits for it.
    auto thread = base::startThread(
        "nixl-resolve", base::Priority::NORMAL,
        [host = host_, port = port_, gate = core_->gate,
         next = weakly([](ExchangeClient& self, const auto& targets) { self.resolved(targets); })] {
            gate->run([next, targets = resolve(host, port)] { next(targets); });
        });
    if (!thread.ok()) {
        return resolved(thread.status());
    }
    thread.value().detach();
}

void ExchangeClient::resolved(Result<std::vector<base::Target>> targets) {
    resolving_ = false;
    if (targets.ok()) {
        return dial(std::move(targets).value());
    }
    if (targets.status().systemErrno() == EAGAIN) {
        return retry(targets.status());
    }
    failAll(targets.status());
    settle();
}

void ExchangeClient::dial(std::vector<base::Target> targets) {
    queued_ = true;
    ConnectTurns::ask(core_->gate, weakly([targets = std::move(targets)](ExchangeClient& self,
                                                                         ConnectTurns::Turn turn) {
                          self.queued_ = false;
                          self.dialNow(targets, std::move(turn));
                      }));
}

void ExchangeClient::dialNow(std::vector<base::Target> targets, ConnectTurns::Turn turn) {
    if (asked_.empty() && followed_.empty() && !published_) {
        return settle();  // whoever asked has given up
    }
    turn_ = std::move(turn);
    dialer_ = std::make_shared<peer::Dialer>(
        core_->reactor, std::move(targets),
        peer::Connector(calls_.self(), {}, peer::ConnectionKind::EXCHANGE, {}, 0, {}),
        kDialPatience);
    const auto dialer = dialer_;
    dialer->start(weakly([](ExchangeClient& self, auto&& opened) {
                      self.endDial();
                      self.opened(std::forward<decltype(opened)>(opened));
                  }),
                  weakly([](ExchangeClient& self, const peer::ConnectFailure& why) {
                      self.endDial();
                      self.notOpened(why);
                  }));
}

void ExchangeClient::endDial() {
    dialer_ = nullptr;
    turn_ = nullptr;
}

void ExchangeClient::notOpened(const peer::ConnectFailure& why) {
    if (mayPass(why)) {
        return retry(why.status);
    }
    failAll(why.status);
    if (why.refused) {
        return comeBack();
    }
    settle();
}

// Another attempt, for those who have time left, and for what is followed.
void ExchangeClient::retry(const Status& why) {
    lastError_ = why;
    failLate();
    if (asked_.empty()) {
        return comeBack();
    }
    stopTimer(pauseTimer_);
    pauseTimer_ = core_->reactor.startTimer(Clock::now() + pause_, weakly([](ExchangeClient& self) {
                                                self.pauseTimer_ = 0;
                                                self.begin();
                                            }));
    pause_ = std::min<std::chrono::milliseconds>(pause_ * 2, std::chrono::seconds(1));
}

// Nobody waits, but the changes of an agent here, or of this one, are to be told.
void ExchangeClient::comeBack() {
    if (!followed_.empty() && !core_->agent->known(followed_)) {
        followed_.clear();
    }
    if ((followed_.empty() && !published_) || returns_ >= kMaxReturns || stopped_) {
        followed_.clear();
        published_ = false;
        return settle();
    }
    ++returns_;
    stopTimer(pauseTimer_);
    pauseTimer_ = core_->reactor.startTimer(Clock::now() + pause_, weakly([](ExchangeClient& self) {
                                                self.pauseTimer_ = 0;
                                                self.begin();
                                            }));
    pause_ = std::min<std::chrono::milliseconds>(pause_ * 2, kLongestPause);
}

void ExchangeClient::opened(peer::ConnectResult opened) {
    pause_ = kFirstPause;
    returns_ = 0;
    const uint64_t number = calls_.number();
    connection_ = std::make_shared<ExchangeConnection>(core_, number, std::move(opened), true);
    calls_.open(number, connection_);
    const auto connection = connection_;
    connection->start(weakly(
        [](ExchangeClient& self, const Status& why, bool parted) { self.lost(why, parted); }));
    // Goes on with what the connection before was for.
    if (!followed_.empty() && connection->peer().name != followed_) {
        followed_.clear();  // another agent has its place now
    }
    const auto logged = [what = addressText(host_, port_)](const Status& status) {
        if (!status.ok()) {
            base::log(LogLevel::INFO,
                      "metadata exchange with " + what + " does not go on: " + status.message());
        }
    };
    if (published_ && connection->peer().name == publishedTo_.name) {
        connection->publish(logged);
    } else {
        published_ = false;
    }
    if (!followed_.empty()) {
        connection->fetch(true, logged);
    }
    submit();
    settle();
}

void ExchangeClient::submit() {
    std::vector<uint64_t> tickets;
    for (const auto& [ticket, asked] : asked_) {
        if (!asked.sent) {
            tickets.push_back(ticket);
        }
    }
    for (const uint64_t ticket : tickets) {
        const auto found = asked_.find(ticket);
        if (found != asked_.end() && connection_ != nullptr) {
            send(ticket, found->second);
        }
    }
}

void ExchangeClient::send(uint64_t ticket, Asked& asked) {
    asked.sent = true;
    const ExchangeRequest& request = asked.request;
    ExchangeConnection& connection = *connection_;
    if (request.kind == ExchangeRequest::Kind::FETCH && request.name != connection.peer().name) {
        return end(ticket,
                   Status::notFound("agent \"" + connection.peer().name + "\" answers at " +
                                    addressText(host_, port_) + ", not \"" + request.name + "\""));
    }
    const auto finish = weakly(
        [ticket](ExchangeClient& self, const Status& status) { self.answered(ticket, status); });
    switch (request.kind) {
        case ExchangeRequest::Kind::FETCH:
            followed_ = request.name;
            return connection.fetch(true, finish);
        case ExchangeRequest::Kind::PUBLISH:
            published_ = true;
            publishedTo_ = connection.peer();
            return connection.publish(finish);
        case ExchangeRequest::Kind::SEND:
            return connection.send(request.partial, finish);
        case ExchangeRequest::Kind::INVALIDATE:
            published_ = false;
            return connection.invalidate(finish);
    }
}

void ExchangeClient::answered(uint64_t ticket, const Status& status) {
    const auto found = asked_.find(ticket);
    if (found == asked_.end()) {
        return;
    }
    if (status.code() == ErrorCode::REMOTE_DISCONNECT) {
        found->second.sent = false;  // on the next connection
        return;
    }
    if (!status.ok() && found->second.request.kind == ExchangeRequest::Kind::PUBLISH) {
        published_ = false;
    }
    end(ticket, status);
    settle();
}

void ExchangeClient::end(uint64_t ticket, const Status& status) {
    auto asked = asked_.extract(ticket);
    if (!asked.empty() && asked.mapped().request.done) {
        asked.mapped().request.done(status.ok() ? status : located(status));
    }
}

void ExchangeClient::lost(const Status& why, bool parted) {
    calls_.closed(connection_->number());
    connection_ = nullptr;
    if (parted) {
        followed_.clear();
        published_ = false;
    }
    retry(why);
}

// Nothing is under way: keeps the connection where it is of use, for a while where it may be.
void ExchangeClient::settle() {
    if (!asked_.empty() || resolving_ || queued_ || dialer_ != nullptr || pauseTimer_ != 0 ||
        stopped_) {
        return;
    }
    if (connection_ == nullptr) {
        return calls_.idle();
    }
    const bool crowded = ExchangeBudget::connections() > ExchangeBudget::idleConnections();
    if ((!followed_.empty() || published_) && !crowded) {
        return;
    }
    if (restTimer_ == 0) {
        const auto rest = crowded ? std::chrono::milliseconds(0) : kRest;
        restTimer_ =
            core_->reactor.startTimer(Clock::now() + rest, weakly([](ExchangeClient& self) {
                                          self.restTimer_ = 0;
                                          self.leave();
                                      }));
    }
}

void ExchangeClient::leave() {
    if (!asked_.empty() || connection_ == nullptr) {
        return;
    }
    if (!connection_->quiet()) {
        return settle();
    }
    const auto connection = std::exchange(connection_, nullptr);
    followed_.clear();
    published_ = false;
    connection->close(Status::disconnected("nothing more to say"), true);
    calls_.closed(connection->number());
    settle();
}

void ExchangeClient::forget(const std::string& name) {
    if (followed_ == name) {
        followed_.clear();
        settle();
    }
}

void ExchangeClient::failAll(const Status& why) {
    while (!asked_.empty()) {
        end(asked_.begin()->first, why);
    }
}

void ExchangeClient::failLate() {
    const auto now = Clock::now();
    std::vector<uint64_t> late;
    for (const auto& [ticket, asked] : asked_) {
        if (asked.request.deadline <= now) {
            late.push_back(ticket);
        }
    }
    for (const uint64_t ticket : late) {
        const std::string why = lastError_.ok() ? std::string() : ": " + lastError_.message();
        end(ticket,
            Status(ErrorCode::TIMEOUT, "no answer in time" + why, lastError_.systemErrno()));
    }
    armDeadline();
}

void ExchangeClient::armDeadline() {
    stopTimer(deadlineTimer_);
    if (asked_.empty()) {
        return;
    }
    auto first = Clock::time_point::max();
    for (const auto& [ticket, asked] : asked_) {
        first = std::min(first, asked.request.deadline);
    }
    deadlineTimer_ = core_->reactor.startTimer(first, weakly([](ExchangeClient& self) {
                                                   self.deadlineTimer_ = 0;
                                                   self.failLate();
                                                   self.settle();
                                               }));
}

void ExchangeClient::stopTimer(uint64_t& timer) {
    if (timer != 0) {
        core_->reactor.stopTimer(std::exchange(timer, 0));
    }
}

void ExchangeClient::stop(const Status& why) {
    if (std::exchange(stopped_, true)) {
        return;
    }
    stopTimer(pauseTimer_);
    stopTimer(deadlineTimer_);
    stopTimer(restTimer_);
    if (dialer_ != nullptr) {
        dialer_->cancel();
        endDial();
    }
    if (const auto connection = std::exchange(connection_, nullptr)) {
        connection->close(why);
    }
    failAll(why);
}

}  // namespace nixl::exchange_tcp
