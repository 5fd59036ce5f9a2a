// See watching.h.
#include "exchange_etcd/watching.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace nixl::exchange_etcd {

using exchange::StoreEntry;
using exchange::StoreEvent;

namespace {

constexpr std::chrono::milliseconds kFirstRetryPause{50};
constexpr std::chrono::milliseconds kLongestRetryPause{5000};

}  // namespace

void Watching::end() {
    life_->self = nullptr;
    closeStream();
}

void Watching::closeStream() {
    ++life_->round;
    if (stream_ != 0) {
        client_.close(std::exchange(stream_, 0));
    }
    if (timer_ != 0) {
        client_.loop().stopTimer(std::exchange(timer_, 0));
    }
}

void Watching::reconnect() {
    closeStream();
    if (revision_ == 0) {
        read();
    } else {
        follow();
    }
}

void Watching::tell(StoreEvent::Kind kind, StoreEntry entry) {
    event_({kind, std::move(entry), {}});
}

void Watching::read() {
    values_.list(prefix_, [life = life_, round = life_->round](Result<Values::Listing> listing) {
        Watching* const self = life->self;
        if (self == nullptr || life->round != round) {
            return;
        }
        if (!listing.ok()) {
            return self->again(listing.status());
        }
        self->revision_ = listing.value().revision;
        self->failures_ = 0;
        self->told_.clear();
        for (StoreEntry& entry : Values::assemble(std::move(listing).value(), self->assembler_)) {
            self->tell(StoreEvent::Kind::PUT, std::move(entry));
        }
        self->tell(StoreEvent::Kind::SYNCED);
        self->follow();
    });
}

void Watching::readAnew() {
    closeStream();
    revision_ = 0;
    assembler_.clear();
    tell(StoreEvent::Kind::RESET);
    read();
}

void Watching::follow() {
    const Json create{{"key", toBase64(prefix_)},
                      {"range_end", toBase64(rangeEnd(prefix_))},
                      {"start_revision", std::to_string(revision_ + 1)}};
    Client::Stream stream;
    stream.line = [life = life_, round = life_->round](const Json& message) {
        if (life->self != nullptr && life->round == round) {
            life->self->onMessage(message);
        }
    };
    stream.end = [life = life_, round = life_->round](const Status& status) {
        if (life->self != nullptr && life->round == round) {
            life->self->stream_ = 0;
            life->self->client_.leaveEndpoint();
            if (life->round == round) {  // leaving may have connected anew
                life->self->again(status);
            }
        }
    };
    stream_ = client_.open("/v3/watch", Json{{"create_request", create}}, std::move(stream));
}

void Watching::onMessage(const Json& message) {
    const Json& result = field(message, "result");
    if (!result.is_object()) {
        const GatewayError error = Client::errorOf(message);
        if (error.wantsNewToken()) {
            client_.dropToken();
        }
        closeStream();
        const uint64_t round = life_->round;
        if (error.unavailable()) {  // it is being stopped
            client_.leaveEndpoint();
        }
        return life_->round == round ? again(client_.explain(error)) : void();
    }
    // A refused watch says so in a message, and its stream stays open.
    if (flagOf(result, "canceled")) {
        return onCanceled(result);
    }
    const int64_t now = numberOf(field(result, "header"), "revision");
    if (flagOf(result, "created")) {
        if (now < revision_) {  // not the store that was read: made anew, or restored
            base::log(LogLevel::WARN, client_.describe() +
                                          " is behind what it said before "
                                          "(restored or emptied?); everything is read anew");
            return readAnew();
        }
        failures_ = 0;
        told_.clear();
    }
    if (const Json& events = field(result, "events"); events.is_array()) {
        onEvents(events);
        revision_ = std::max(revision_, now);
    }
}

void Watching::onCanceled(const Json& result) {
    closeStream();
    if (numberOf(result, "compact_revision") > 0) {
        return readAnew();  // what happened meanwhile is no longer known
    }
    GatewayError error;
    error.text = textOf(result, "cancel_reason");
    // Without a token that is known, and without the right to read, the reason is the same: the
    // read that follows tells them apart.
    client_.dropToken();
    if (error.text.empty()) {
        error.text = "the watch was refused";
    }
    failed(Status::notAllowed(client_.describe() + ": " + error.text));
}

// A refusal says nothing of its cause: reading asks for a token, and is refused with the reason.
void Watching::failed(const Status& why) {
    client_.call("/v3/kv/range",
                 Json{{"key", toBase64(prefix_)},
                      {"range_end", toBase64(rangeEnd(prefix_))},
                      {"limit", "1"},
                      {"keys_only", true}},
                 [life = life_, round = life_->round, why](const Result<Json>& answer) {
                     if (life->self != nullptr && life->round == round) {
                         life->self->again(answer.ok() ? why : answer.status());
                     }
                 });
}

void Watching::onEvents(const Json& events) {
    const uint64_t round = life_->round;
    const std::shared_ptr<Life> life = life_;
    for (const Json& event : events) {
        if (life->self == nullptr || life->round != round) {
            return;  // ended by what was told
        }
        const Json& kv = field(event, "kv");
        StoreEntry entry{bytesOf(kv, "key"), bytesOf(kv, "value"),
                         static_cast<uint64_t>(numberOf(kv, "mod_revision"))};
        const bool removed = textOf(event, "type") == "DELETE";
        if (Assembler::isPart(entry.key)) {
            if (removed) {
                assembler_.dropPart(entry.key);
            } else {
                assembler_.addPart(entry.key, std::move(entry.value));
            }
            continue;
        }
        if (removed) {
            tell(StoreEvent::Kind::REMOVED, std::move(entry));
            continue;
        }
        std::optional<std::string> whole = assembler_.whole(entry.key, std::move(entry.value));
        if (!whole.has_value()) {
            base::log(LogLevel::WARN, client_.describe() + ": the value of \"" + entry.key +
                                          "\" lacks parts, or is damaged; it is left out");
            continue;
        }
        entry.value = std::move(*whole);
        tell(StoreEvent::Kind::PUT, std::move(entry));
    }
}

void Watching::again(const Status& why) {
    if (why.message() != told_) {
        told_ = why.message();
        event_({StoreEvent::Kind::FAILED, {}, why});
    }
    const auto pause =
        std::min(kFirstRetryPause * (1U << std::min(failures_, 7U)), kLongestRetryPause);
    ++failures_;
    timer_ = client_.loop().startTimer(HttpLoop::Clock::now() + pause, [this] {
        timer_ = 0;
        reconnect();
    });
}

}  // namespace nixl::exchange_etcd
