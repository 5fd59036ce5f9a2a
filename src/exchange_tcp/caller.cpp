// See caller.h.
#include "exchange_tcp/caller.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
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
auto Caller::weakly(Call call) {
    return [weak = weak_from_this(), call = std::move(call)](auto&&... arguments) {
        if (const auto self = weak.lock(); self != nullptr && !self->stopped_) {
            call(*self, std::forward<decltype(arguments)>(arguments)...);
        }
    };
}

Caller::Caller(std::shared_ptr<Core> core, std::string host, uint16_t port, Calls calls)
    : core_(std::move(core)), host_(std::move(host)), port_(port), calls_(std::move(calls)) {}

Caller::~Caller() = default;

Status Caller::located(const Status& why) const {
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

void Caller::add(Want want) {
    stopTimer(restTimer_);
    asked_[nextTicket_++] = {std::move(want), false};
    armDeadline();
    if (conversation_ != nullptr) {
        submit();
    } else if (dialer_ == nullptr && !resolving_) {
        stopTimer(pauseTimer_);
        pause_ = kFirstPause;
        begin();
    }
}

void Caller::begin() {
    if (stopped_ || resolving_ || dialer_ != nullptr || conversation_ != nullptr) {
        return;
    }
    if (auto numeric = numericTargets(host_, port_)) {
        return dial(*std::move(numeric));
    }
    resolving_ = true;
    core_->pool.run(
        [host = host_, port = port_, &reactor = core_->reactor,
         next = weakly([](Caller& self, const auto& targets) { self.resolved(targets); })] {
            reactor.run([next, targets = resolve(host, port)] { next(targets); });
        });
}

void Caller::resolved(Result<std::vector<base::Target>> targets) {
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

void Caller::dial(std::vector<base::Target> targets) {
    dialer_ = std::make_shared<peer::Dialer>(
        core_->reactor, std::move(targets),
        peer::Connector(calls_.self(), {}, peer::ConnectionKind::EXCHANGE, {}, 0, {}),
        kDialPatience);
    const auto dialer = dialer_;
    dialer->start(weakly([](Caller& self, auto&& opened) {
                      self.dialer_ = nullptr;
                      self.opened(std::forward<decltype(opened)>(opened));
                  }),
                  weakly([](Caller& self, const peer::ConnectFailure& why) {
                      self.dialer_ = nullptr;
                      self.notOpened(why);
                  }));
}

void Caller::notOpened(const peer::ConnectFailure& why) {
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
void Caller::retry(const Status& why) {
    lastError_ = why;
    failLate();
    if (asked_.empty()) {
        return comeBack();
    }
    stopTimer(pauseTimer_);
    pauseTimer_ = core_->reactor.startTimer(Clock::now() + pause_, weakly([](Caller& self) {
                                                self.pauseTimer_ = 0;
                                                self.begin();
                                            }));
    pause_ = std::min<std::chrono::milliseconds>(pause_ * 2, std::chrono::seconds(1));
}

// Nobody waits, but the changes of an agent here, or of this one, are to be told.
void Caller::comeBack() {
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
    pauseTimer_ = core_->reactor.startTimer(Clock::now() + pause_, weakly([](Caller& self) {
                                                self.pauseTimer_ = 0;
                                                self.begin();
                                            }));
    pause_ = std::min<std::chrono::milliseconds>(pause_ * 2, kLongestPause);
}

void Caller::opened(peer::ConnectResult opened) {
    pause_ = kFirstPause;
    returns_ = 0;
    const uint64_t number = calls_.number();
    conversation_ = std::make_shared<Conversation>(core_, number, std::move(opened), true);
    calls_.open(number, conversation_);
    const auto conversation = conversation_;
    conversation->start(
        weakly([](Caller& self, const Status& why, bool parted) { self.lost(why, parted); }));
    // Goes on with what the connection before was for.
    if (!followed_.empty() && conversation->peer().name != followed_) {
        followed_.clear();  // another agent has its place now
    }
    const auto logged = [what = addressText(host_, port_)](const Status& status) {
        if (!status.ok()) {
            base::log(LogLevel::INFO,
                      "metadata exchange with " + what + " does not go on: " + status.message());
        }
    };
    if (published_ && conversation->peer().name == publishedTo_.name) {
        conversation->publish(logged);
    } else {
        published_ = false;
    }
    if (!followed_.empty()) {
        conversation->fetch(true, logged);
    }
    submit();
    settle();
}

void Caller::submit() {
    std::vector<uint64_t> tickets;
    for (const auto& [ticket, asked] : asked_) {
        if (!asked.sent) {
            tickets.push_back(ticket);
        }
    }
    for (const uint64_t ticket : tickets) {
        const auto found = asked_.find(ticket);
        if (found != asked_.end() && conversation_ != nullptr) {
            send(ticket, found->second);
        }
    }
}

void Caller::send(uint64_t ticket, Asked& asked) {
    asked.sent = true;
    const Want& want = asked.want;
    Conversation& conversation = *conversation_;
    if (want.kind == Want::Kind::FETCH && want.name != conversation.peer().name) {
        return end(ticket,
                   Status::notFound("agent \"" + conversation.peer().name + "\" answers at " +
                                    addressText(host_, port_) + ", not \"" + want.name + "\""));
    }
    const auto finish =
        weakly([ticket](Caller& self, const Status& status) { self.answered(ticket, status); });
    switch (want.kind) {
        case Want::Kind::FETCH:
            followed_ = want.name;
            return conversation.fetch(true, finish);
        case Want::Kind::PUBLISH:
            published_ = true;
            publishedTo_ = conversation.peer();
            return conversation.publish(finish);
        case Want::Kind::SEND:
            return conversation.send(want.partial, finish);
        case Want::Kind::INVALIDATE:
            published_ = false;
            return conversation.invalidate(finish);
    }
}

void Caller::answered(uint64_t ticket, const Status& status) {
    const auto found = asked_.find(ticket);
    if (found == asked_.end()) {
        return;
    }
    if (status.code() == ErrorCode::REMOTE_DISCONNECT) {
        found->second.sent = false;  // on the next connection
        return;
    }
    if (!status.ok() && found->second.want.kind == Want::Kind::PUBLISH) {
        published_ = false;
    }
    end(ticket, status);
    settle();
}

void Caller::end(uint64_t ticket, const Status& status) {
    auto asked = asked_.extract(ticket);
    if (!asked.empty() && asked.mapped().want.done) {
        asked.mapped().want.done(status.ok() ? status : located(status));
    }
}

void Caller::lost(const Status& why, bool parted) {
    calls_.closed(conversation_->number());
    conversation_ = nullptr;
    if (parted) {
        followed_.clear();
        published_ = false;
    }
    retry(why);
}

// Nothing is under way: keeps the connection where it is of use, for a while where it may be.
void Caller::settle() {
    if (!asked_.empty() || resolving_ || dialer_ != nullptr || pauseTimer_ != 0 || stopped_) {
        return;
    }
    if (conversation_ == nullptr) {
        return calls_.idle();
    }
    const bool crowded = Room::connections() > Room::idleConnections();
    if ((!followed_.empty() || published_) && !crowded) {
        return;
    }
    if (restTimer_ == 0) {
        const auto rest = crowded ? std::chrono::milliseconds(0) : kRest;
        restTimer_ = core_->reactor.startTimer(Clock::now() + rest, weakly([](Caller& self) {
                                                   self.restTimer_ = 0;
                                                   self.leave();
                                               }));
    }
}

void Caller::leave() {
    if (!asked_.empty() || conversation_ == nullptr) {
        return;
    }
    if (!conversation_->quiet()) {
        return settle();
    }
    const auto conversation = std::exchange(conversation_, nullptr);
    followed_.clear();
    published_ = false;
    conversation->close(Status::disconnected("nothing more to say"), true);
    calls_.closed(conversation->number());
    settle();
}

void Caller::forget(const std::string& name) {
    if (followed_ == name) {
        followed_.clear();
        settle();
    }
}

void Caller::failAll(const Status& why) {
    while (!asked_.empty()) {
        end(asked_.begin()->first, why);
    }
}

void Caller::failLate() {
    const auto now = Clock::now();
    std::vector<uint64_t> late;
    for (const auto& [ticket, asked] : asked_) {
        if (asked.want.deadline <= now) {
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

void Caller::armDeadline() {
    stopTimer(deadlineTimer_);
    if (asked_.empty()) {
        return;
    }
    auto first = Clock::time_point::max();
    for (const auto& [ticket, asked] : asked_) {
        first = std::min(first, asked.want.deadline);
    }
    deadlineTimer_ = core_->reactor.startTimer(first, weakly([](Caller& self) {
                                                   self.deadlineTimer_ = 0;
                                                   self.failLate();
                                                   self.settle();
                                               }));
}

void Caller::stopTimer(uint64_t& timer) {
    if (timer != 0) {
        core_->reactor.stopTimer(std::exchange(timer, 0));
    }
}

void Caller::stop(const Status& why) {
    if (std::exchange(stopped_, true)) {
        return;
    }
    stopTimer(pauseTimer_);
    stopTimer(deadlineTimer_);
    stopTimer(restTimer_);
    if (dialer_ != nullptr) {
        dialer_->cancel();
        dialer_ = nullptr;
    }
    if (const auto conversation = std::exchange(conversation_, nullptr)) {
        conversation->close(why);
    }
    failAll(why);
}

}  // namespace nixl::exchange_tcp
