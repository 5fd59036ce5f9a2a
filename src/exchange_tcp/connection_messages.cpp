// See connection.h: what the messages say, and what is done about it.
#include <utility>

#include "base/log.h"
#include "exchange_tcp/connection.h"

namespace nixl::exchange_tcp {

using exchange::Known;
using exchange::Snapshot;
using Taken = Owners::Taken;

namespace {

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

}  // namespace nixl::exchange_tcp
