// See connection.h.
#include "exchange_tcp/connection.h"

#include <algorithm>
#include <utility>

#include <sys/epoll.h>

#include "base/log.h"

namespace nixl::exchange_tcp {

using exchange::Known;
using exchange::Snapshot;
using Taken = Owners::Taken;

namespace {

constexpr std::chrono::milliseconds kRoomRetry{20};

Status checkSize(size_t metadata) {
    return metadata <= kMaxMetadata
               ? Status()
               : Status::invalidParam("metadata of " + std::to_string(metadata) +
                                      " bytes; at most " + std::to_string(kMaxMetadata) +
                                      " can be exchanged");
}

Result<Snapshot> checked(Snapshot made) {
    const Status status = checkSize(made.blob->size());
    return status.ok() ? Result<Snapshot>(std::move(made)) : status;
}

}  // namespace

ExchangeConnection::ExchangeConnection(std::shared_ptr<Core> core,
                                       uint64_t number,
                                       peer::ConnectResult opened,
                                       bool asked)
    : core_(std::move(core)),
      speaker_{opened.result.peer, number, opened.result.proven, asked},
      channel_(std::move(opened.channel)),
      input_(std::move(opened.early)),
      lastUsed_(Reactor::Clock::now()) {
    ExchangeBudget::enter();
}

ExchangeConnection::~ExchangeConnection() {
    closeSocket();
    ExchangeBudget::leave();
}

void ExchangeConnection::start(Ended ended) {
    ended_ = std::move(ended);
    watchFor();
    if (channel_ != nullptr && !input_.empty()) {
        core_->reactor.run([weak = weak_from_this()] {
            if (const auto self = weak.lock(); self != nullptr && self->channel_ != nullptr) {
                self->onEvent(0);
            }
        });
    }
}

// What is waited for: nothing while something is on the pool and nothing waits to be sent.
void ExchangeConnection::watchFor() {
    if (channel_ == nullptr) {
        return;
    }
    const bool read = !busy_ && answers_ < kMaxAnswers && inputEnd_.ok() && !roomless_;
    const uint32_t events = (read ? EPOLLIN : 0U) | (out_.empty() ? 0U : EPOLLOUT);
    if (events == 0) {
        // Errors come unasked for as long as it is watched at all.
        if (watch_ != 0) {
            core_->reactor.unwatch(std::exchange(watch_, 0));
        }
        return;
    }
    if (watch_ != 0) {
        if (const Status status = core_->reactor.modify(watch_, events); !status.ok()) {
            end(status);
        }
        return;
    }
    auto watch =
        core_->reactor.watch(channel_->fd(), events, [weak = weak_from_this()](uint32_t seen) {
            if (const auto self = weak.lock()) {
                self->onEvent(seen);
            }
        });
    if (!watch.ok()) {
        return end(watch.status());
    }
    watch_ = watch.value();
}

void ExchangeConnection::onEvent(uint32_t events) {
    const auto keep = shared_from_this();
    if ((events & (EPOLLOUT | EPOLLERR)) != 0) {
        flush();
    }
    if (channel_ != nullptr && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && !busy_ &&
        inputEnd_.ok()) {
        inputEnd_ = receive();
    }
    while (channel_ != nullptr && takeFrame()) {
    }
    if (channel_ != nullptr && !inputEnd_.ok() && !busy_) {
        return end(inputEnd_);
    }
    watchFor();
}

// One read: others have their turn. What a message needs beyond that comes with the next ones.
Status ExchangeConnection::receive() {
    char buffer[kReadSize];  // who sends little takes little memory
    iovec vector{buffer, sizeof(buffer)};
    auto got = channel_->receive(&vector, 1);
    if (got.ok()) {
        input_.append(buffer, got.value());
        core_->bytesIn.fetch_add(got.value(), std::memory_order_relaxed);
    }
    return got.status();
}

// Handles the next message, if there is a whole one and its turn has come.
bool ExchangeConnection::takeFrame() {
    if (busy_ || answers_ >= kMaxAnswers) {
        return false;
    }
    if (input_.size() < kHeader) {
        if (!input_.empty()) {
            armPatience(kHeader);
        }
        return false;
    }
    const auto header = readHeader(input_);
    if (!header.ok()) {
        end(header.status());
        return false;
    }
    const size_t size = kHeader + header.value().length;
    if (size > ExchangeBudget::kLargeMessage && reserved_ == 0) {
        if (!core_->budget.reserve(size)) {
            awaitRoom(size);
            return false;
        }
        reserved_ = size;
        roomless_ = false;
        input_.reserve(size);
    }
    if (input_.size() < size) {
        armPatience(size);
        return false;
    }
    std::string body;
    if (input_.size() == size) {
        body = std::exchange(input_, {});
        body.erase(0, kHeader);
    } else {
        body = input_.substr(kHeader, header.value().length);
        input_.erase(0, size);
    }
    if (timer_ != 0 && out_.empty()) {
        core_->reactor.stopTimer(std::exchange(timer_, 0));
    }
    lastUsed_ = Reactor::Clock::now();
    const Status status = handle(header.value().type, std::move(body));
    if (reserved_ != 0 && !busy_) {
        core_->budget.release(std::exchange(reserved_, 0));
    }
    if (!status.ok()) {
        end(status);
        return false;
    }
    return channel_ != nullptr;
}

// A large message begins while others of that kind take all the room: looks again in a moment.
void ExchangeConnection::awaitRoom(size_t bytes) {
    armPatience(bytes);
    if (std::exchange(roomless_, true)) {
        return;
    }
    core_->reactor.startTimer(Reactor::Clock::now() + kRoomRetry, [weak = weak_from_this()] {
        if (const auto self = weak.lock(); self != nullptr && self->channel_ != nullptr) {
            self->roomless_ = false;
            self->onEvent(0);
        }
    });
}

Status ExchangeConnection::handle(MessageType type, std::string body) {
    switch (type) {
        case MessageType::FETCH:
            return onFetch(body);
        case MessageType::LOAD:
            return onLoad(std::move(body));
        case MessageType::INVALIDATE:
            return onInvalidate(body);
        case MessageType::ANSWER:
            return onAnswer(std::move(body));
        case MessageType::PART:
            parted_ = true;
            return {};
    }
    return Status::invalidParam("an unknown message");
}

template <typename Work, typename Next>
void ExchangeConnection::elsewhere(Work work, Next next) {
    busy_ = true;
    core_->pool.run(
        [self = shared_from_this(), work = std::move(work), next = std::move(next)]() mutable {
            auto result = work();
            Reactor& reactor = self->core_->reactor;
            reactor.run([self = std::move(self), next = std::move(next),
                         result = std::move(result)]() mutable {
                self->busy_ = false;
                if (self->reserved_ != 0) {
                    self->core_->budget.release(std::exchange(self->reserved_, 0));
                }
                if (self->channel_ == nullptr) {
                    self->core_->owners.ended(self->number());  // it may have become one meanwhile
                    return;
                }
                self->lastUsed_ = Reactor::Clock::now();
                next(*self, std::move(result));
                if (self->channel_ != nullptr) {
                    self->onEvent(0);
                }
            });
        });
}

Status ExchangeConnection::onFetch(std::string_view body) {
    auto decoded = Fetch::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    const Fetch fetch = decoded.value();
    const bool same = fetch.known == core_->agent->self().incarnation;
    const uint64_t since = same ? fetch.version : 0;
    core_->served.fetch_add(1, std::memory_order_relaxed);
    const auto told = [fetch](ExchangeConnection& self, Result<Snapshot> made) {
        if (made.ok() && made.value().blob != nullptr) {
            made = checked(std::move(made).value());
        }
        if (!made.ok()) {
            return self.answer(fetch.request, made.status());
        }
        if (fetch.follow) {
            self.publishing_ = true;
            self.toldVersion_ = made.value().version;
        }
        self.answer(fetch.request, {}, std::move(made.value().blob));
        self.changed();  // since it was made
    };
    if (same && since == core_->agent->version()) {
        told(*this, Snapshot{nullptr, since});
        return {};
    }
    elsewhere([core = core_, since] { return core->agent->snapshot(since); }, told);
    return {};
}

Status ExchangeConnection::onLoad(std::string body) {
    auto decoded = Load::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    struct Outcome {
        Result<Taken> taken;
        uint64_t stale = 0;
    };
    const uint64_t request = decoded.value().request;
    const size_t skip = body.size() - decoded.value().metadata.size();
    elsewhere(
        [core = core_, speaker = speaker_, body = std::move(body), request, skip] {
            Outcome outcome{Taken::BEFORE, 0};
            const std::string_view blob = std::string_view(body).substr(skip);
            outcome.taken = request == 0 ? core->owners.update(speaker, blob)
                                         : core->owners.take(speaker, blob, outcome.stale);
            return outcome;
        },
        [request](ExchangeConnection& self, Outcome outcome) {
            const Status& status = outcome.taken.status();
            if (outcome.stale != 0 && self.core_->askAgain) {
                self.core_->askAgain(outcome.stale);
            }
            if (status.ok() && outcome.taken.value() == Taken::MISSED) {
                // Something in between never came: from the start.
                self.ask(self.core_->agent->known(self.peer().name), true,
                         [weak = self.weak_from_this(), request](const Status& end) {
                             if (const auto me = weak.lock(); me != nullptr && request != 0) {
                                 me->answer(request, end);
                             }
                         });
                return;
            }
            if (request == 0) {
                self.core_->updatesTaken.fetch_add(status.ok() ? 1 : 0, std::memory_order_relaxed);
            }
            if (request != 0 || !status.ok()) {
                self.answer(request, status);
            }
        });
    return {};
}

Status ExchangeConnection::onInvalidate(std::string_view body) {
    auto decoded = Invalidate::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    elsewhere([core = core_, speaker = speaker_] { return core->owners.drop(speaker); },
              [request = decoded.value().request](ExchangeConnection& self, const Status& status) {
                  self.answer(request, status);
              });
    return {};
}

Status ExchangeConnection::onAnswer(std::string body) {
    auto decoded = Answer::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    const Answer& answer = decoded.value();
    if (answer.request == 0) {
        publishing_ = false;  // nobody there wants it any more
        return {};
    }
    const auto found = requests_.find(answer.request);
    if (found == requests_.end()) {
        return Status::invalidParam("an answer to nothing that was asked");
    }
    if (!found->second.fetch || !answer.status.ok() || answer.metadata.empty()) {
        if (found->second.fetch && answer.status.ok() && found->second.whole) {
            return Status::invalidParam("an answer without metadata");
        }
        finish(answer.request, answer.status);
        return {};
    }
    const uint64_t request = answer.request;
    const size_t skip = body.size() - answer.metadata.size();
    elsewhere(
        [core = core_, speaker = speaker_, body = std::move(body), skip] {
            uint64_t stale = 0;
            return core->owners.take(speaker, std::string_view(body).substr(skip), stale);
        },
        [request](ExchangeConnection& self, Result<Taken> taken) {
            if (taken.ok() && taken.value() == Taken::MISSED) {
                const auto asked = self.requests_.extract(request);
                if (asked.mapped().whole) {
                    asked.mapped().done(Status::mismatch("agent \"" + self.peer().name +
                                                         "\" sends changes of what nobody has"));
                } else {
                    self.ask(std::nullopt, true, std::move(asked.mapped().done));
                }
                return;
            }
            self.finish(request, taken.status());
        });
    return {};
}

void ExchangeConnection::finish(uint64_t request, const Status& status) {
    auto found = requests_.extract(request);
    if (!found.empty() && found.mapped().done) {
        found.mapped().done(status);
    }
}

void ExchangeConnection::fetch(bool follow, Done done) {
    ask(core_->agent->known(peer().name), follow, std::move(done));
}

void ExchangeConnection::ask(std::optional<Known> known, bool follow, Done done) {
    Fetch fetch;
    fetch.request = nextRequest_++;
    fetch.follow = follow;
    if (known && known->who == peer() && known->version != 0) {
        fetch.known = known->who.incarnation;
        fetch.version = known->version;
    }
    requests_[fetch.request] = {true, fetch.version == 0, std::move(done)};
    push({fetch.encode(), nullptr, false});
}

void ExchangeConnection::publish(Done done) {
    publishing_ = true;
    toldVersion_ = 0;
    tellChanges(nextRequest_++, std::move(done));
}

void ExchangeConnection::send(std::shared_ptr<const std::string> partial, Done done) {
    if (const Status status = checkSize(partial->size()); !status.ok()) {
        return done(status);
    }
    const uint64_t request = nextRequest_++;
    requests_[request] = {false, false, std::move(done)};
    std::string head = Load::encodeHead(request, partial->size());
    push({std::move(head), std::move(partial), false});
}

void ExchangeConnection::invalidate(Done done) {
    publishing_ = false;
    const uint64_t request = nextRequest_++;
    requests_[request] = {false, false, std::move(done)};
    push({Invalidate{request}.encode(), nullptr, false});
}

void ExchangeConnection::changed() {
    if (channel_ == nullptr || !publishing_ || telling_ || !out_.empty() || toldVersion_ == 0 ||
        core_->agent->version() == toldVersion_) {
        return;  // what is on its way is followed by a look
    }
    tellChanges(0, nullptr);
}

// Makes what the other side does not know and sends it. Not through elsewhere(): reading goes on.
void ExchangeConnection::tellChanges(uint64_t request, Done done) {
    telling_ = true;
    if (request != 0) {
        requests_[request] = {false, false, std::move(done)};
    }
    const uint64_t since = toldVersion_;
    core_->pool.run([self = shared_from_this(), since, request]() mutable {
        auto made = self->core_->agent->snapshot(since);
        if (made.ok()) {
            made = checked(std::move(made).value());
        }
        Reactor& reactor = self->core_->reactor;
        reactor.run([self = std::move(self), made = std::move(made), request] {
            self->telling_ = false;
            if (self->channel_ == nullptr || (request == 0 && !self->publishing_)) {
                return;
            }
            if (!made.ok()) {
                base::log(LogLevel::WARN, "what changed cannot be told to agent \"" +
                                              self->peer().name + "\": " + made.status().message());
                self->publishing_ = false;
                return self->finish(request, made.status());
            }
            self->toldVersion_ = made.value().version;
            if (request == 0) {
                self->core_->updatesSent.fetch_add(1, std::memory_order_relaxed);
            }
            const auto& blob = made.value().blob;
            self->push({Load::encodeHead(request, blob->size()), blob, false});
        });
    });
}

void ExchangeConnection::answer(uint64_t request, const Status& status, Blob metadata) {
    const size_t size = metadata != nullptr ? metadata->size() : 0;
    push({Answer::encodeHead(request, status, size), std::move(metadata), true});
}

void ExchangeConnection::push(Piece piece) {
    if (channel_ == nullptr) {
        return;
    }
    lastUsed_ = Reactor::Clock::now();
    answers_ += piece.answer ? 1 : 0;
    const bool first = out_.empty();
    out_.push_back(std::move(piece));
    if (first) {
        flush();
        watchFor();
    }
}

void ExchangeConnection::flush() {
    while (channel_ != nullptr && !out_.empty()) {
        const Piece& piece = out_.front();
        iovec vectors[2];
        size_t count = 0;
        if (sent_ < piece.head.size()) {
            vectors[count++] = {const_cast<char*>(piece.head.data()) + sent_,
                                piece.head.size() - sent_};
        }
        if (piece.body != nullptr) {
            const size_t skip = sent_ > piece.head.size() ? sent_ - piece.head.size() : 0;
            vectors[count++] = {const_cast<char*>(piece.body->data()) + skip,
                                piece.body->size() - skip};
        }
        auto put = channel_->send(vectors, count);
        if (!put.ok()) {
            // What has come already still counts.
            inputEnd_ = inputEnd_.ok() ? put.status() : inputEnd_;
            out_.clear();
            answers_ = 0;
            return busy_ ? watchFor() : end(inputEnd_);
        }
        core_->bytesOut.fetch_add(put.value(), std::memory_order_relaxed);
        sent_ += put.value();
        if (sent_ < piece.size()) {
            return armPatience(piece.size());
        }
        answers_ -= piece.answer ? 1 : 0;
        out_.pop_front();
        sent_ = 0;
        if (timer_ != 0) {
            core_->reactor.stopTimer(std::exchange(timer_, 0));
        }
    }
    changed();
}

// A message that is being sent or received must be over in time.
void ExchangeConnection::armPatience(size_t bytes) {
    if (timer_ == 0) {
        const auto when =
            Reactor::Clock::now() + kPatience + std::chrono::seconds(bytes / kSlowest);
        timer_ = core_->reactor.startTimer(when, [weak = weak_from_this()] {
            if (const auto self = weak.lock()) {
                self->timer_ = 0;
                self->end(Status::timeout("agent \"" + self->peer().name +
                                          "\" took too long over a message"));
            }
        });
    }
}

bool ExchangeConnection::quiet() const {
    return !busy_ && !telling_ && out_.empty() && input_.empty() && requests_.empty();
}

void ExchangeConnection::closeSocket() {
    if (timer_ != 0) {
        core_->reactor.stopTimer(std::exchange(timer_, 0));
    }
    if (watch_ != 0) {
        core_->reactor.unwatch(std::exchange(watch_, 0));
    }
    channel_.reset();
    if (reserved_ != 0 && !busy_) {
        core_->budget.release(std::exchange(reserved_, 0));
    }
}

void ExchangeConnection::end(const Status& why) {
    const auto keep = shared_from_this();
    if (channel_ == nullptr) {
        return;
    }
    const auto call = std::exchange(ended_, nullptr);
    close(why);
    if (call) {
        call(why, parted_);
    }
}

void ExchangeConnection::close(const Status& why, bool part) {
    if (channel_ == nullptr) {
        return;
    }
    const auto keep = shared_from_this();
    ended_ = nullptr;
    if (part && out_.empty()) {
        const std::string bytes = encodePart();
        const iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
        static_cast<void>(channel_->send(&vector, 1).ok());
    }
    closeSocket();
    publishing_ = false;
    core_->owners.ended(number());
    const Status lost = why.code() == ErrorCode::REMOTE_DISCONNECT
                            ? why
                            : Status(ErrorCode::REMOTE_DISCONNECT, why.message());
    for (auto& [request, one] : std::exchange(requests_, {})) {
        if (one.done) {
            one.done(lost);
        }
    }
}

}  // namespace nixl::exchange_tcp
