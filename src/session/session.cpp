// See session.h.
#include "session/session.h"

#include <algorithm>
#include <utility>

namespace nixl::peer {

namespace {

// How many bytes of unsent urgent frames are kept while the connection does not take any: a peer
// that makes us answer without reading the answers loses its connection.
constexpr size_t kMaxUrgent = 256 << 10;

// Of a notification that the peer may have got all the same.
Status unconfirmed(const Status& why) {
    return {why.code(),
            why.message() +
                "; remote_unconfirmed: the notification was sent already and the peer "
                "has not acknowledged it",
            why.systemErrno()};
}

}  // namespace

Session::Session(std::string peer_name, const SessionLimits& limits)
    : peerName_(std::move(peer_name)), limits_(limits) {}

Resume Session::resume() const {
    // Only what the owner has: the sender repeats the rest, and what came is recognised.
    return {epoch_, delivered_, consumed_};
}

void Session::attach(Time now, const Resume& peer, bool resumed) {
    attached_ = true;
    now_ = lastHeard_ = lastPing_ = now;
    blockedSince_ = {};
    urgent_.clear();
    input_.clear();
    partial_.clear();
    partialSize_ = 0;
    if (!resumed || peer.epoch != epoch_) {
        restart();
        epoch_ = peer.epoch;
    } else if (!applyAck(peer.received, peer.consumed).ok()) {
        // A peer that claims to have what was never sent: trust nothing it kept.
        restart();
    }
    cursor_ = 0;
    offset_ = 0;
    ackDue_ = true;  // tells the peer what its side of the handshake could not
}

void Session::restart() {
    while (!queue_.empty() && queue_.front().sequence != 0) {
        finishFirst(
            unconfirmed(Status::disconnected("agent \"" + peerName_ + "\" lost the session")));
    }
    nextSequence_ = 1;
    begunCost_ = 0;
    peerConsumed_ = 0;
    received_ = 0;
    delivered_ = 0;
    receivedCost_ = 0;
    consumed_ = 0;
}

void Session::detach() {
    attached_ = false;
    cursor_ = 0;
    offset_ = 0;
    input_.clear();
    partial_.clear();
    urgent_.clear();
}

void Session::fail(const Status& why) {
    detach();
    while (!queue_.empty()) {
        finishFirst(queue_.front().sequence != 0 ? unconfirmed(why) : why);
    }
    epoch_ = 0;
    restart();
}

void Session::finishFirst(Status status) {
    Outgoing& first = queue_.front();
    queuedCost_ -= costOf(first.message.size());
    Event event;
    event.kind = Event::Kind::SENT;
    event.token = first.token;
    event.status = std::move(status);
    events_.push_back(std::move(event));
    queue_.pop_front();
    if (cursor_ > 0) {
        --cursor_;
    } else {
        offset_ = 0;
    }
}

Status Session::send(std::string message, uint64_t token) {
    if (message.size() > kMaxNotification) {
        return Status::invalidParam("notification of " + std::to_string(message.size()) +
                                    " bytes to agent \"" + peerName_ + "\": at most " +
                                    std::to_string(kMaxNotification) + " are legal");
    }
    const uint64_t cost = costOf(message.size());
    if (queuedCost_ + cost > limits_.queue) {
        return Status::notAllowed("agent \"" + peerName_ + "\" does not take its notifications: " +
                                  std::to_string(queuedCost_) + " bytes wait for it (limit " +
                                  std::to_string(limits_.queue) + ")");
    }
    queuedCost_ += cost;
    queue_.push_back({0, token, std::move(message)});
    return {};
}

bool Session::withdraw(uint64_t token) {
    const auto found = std::find_if(queue_.begin(), queue_.end(), [token](const Outgoing& one) {
        return one.token == token && one.sequence == 0;
    });
    if (found == queue_.end()) {
        return false;
    }
    queuedCost_ -= costOf(found->message.size());
    queue_.erase(found);
    return true;
}

void Session::delivered(uint64_t epoch, uint64_t sequence) {
    if (epoch == epoch_ && sequence > delivered_) {
        delivered_ = std::min(sequence, received_);
        ackDue_ = true;
    }
}

void Session::consumed(uint64_t epoch, uint64_t cost) {
    // What was received in an earlier epoch does not count in this one.
    if (epoch == epoch_) {
        consumed_ = std::min(consumed_ + cost, receivedCost_);
        ackDue_ = true;
    }
}

void Session::sendFrame(FrameType type, std::string_view body) {
    base::ByteWriter out;
    const size_t begin = beginFrame(out, type);
    out.raw(body);
    endFrame(out, begin);
    urgent_ += out.bytes();
}

bool Session::mayBegin(const Outgoing& next) const {
    return next.sequence != 0 ||
           begunCost_ + costOf(next.message.size()) - peerConsumed_ <= limits_.window;
}

bool Session::wantsToSend() const {
    return attached_ &&
           (!urgent_.empty() || ackDue_ || (cursor_ < queue_.size() && mayBegin(queue_[cursor_])));
}

void Session::producePiece(base::ByteWriter& out) {
    Outgoing& current = queue_[cursor_];
    if (current.sequence == 0) {
        current.sequence = nextSequence_++;
        begunCost_ += costOf(current.message.size());
    }
    NotificationPiece piece;
    piece.sequence = current.sequence;
    piece.size = current.message.size();
    piece.offset = offset_;
    piece.bytes = std::string_view(current.message).substr(offset_, kNotificationPiece);
    const size_t begin = beginFrame(out, FrameType::NOTIFICATION);
    piece.encode(out);
    endFrame(out, begin);
    offset_ += piece.bytes.size();
    if (offset_ == current.message.size()) {
        ++cursor_;
        offset_ = 0;
    }
}

void Session::produce(std::string& out, size_t target) {
    if (!attached_) {
        return;
    }
    out += std::exchange(urgent_, {});
    while (out.size() < target) {
        base::ByteWriter writer;
        if (ackDue_) {
            ackDue_ = false;
            const size_t begin = beginFrame(writer, FrameType::ACK);
            Ack{delivered_, consumed_}.encode(writer);
            endFrame(writer, begin);
        } else if (cursor_ < queue_.size() && mayBegin(queue_[cursor_])) {
            blockedSince_ = {};
            producePiece(writer);
        } else {
            break;
        }
        out += writer.bytes();
    }
}

Status Session::receive(std::string_view bytes, Time now) {
    now_ = lastHeard_ = now;
    // Whole frames are taken from where they are; only an incomplete one is kept.
    std::string_view rest = bytes;
    std::string kept;
    if (!input_.empty()) {
        kept = std::exchange(input_, {});
        kept += bytes;
        rest = kept;
    }
    while (true) {
        auto frame = nextFrame(rest);
        if (!frame.ok()) {
            return frame.status();
        }
        if (!frame.value().whole) {
            break;
        }
        NIXL_RETURN_IF_ERROR(onFrame(frame.value().header.type, frame.value().body));
        rest.remove_prefix(frame.value().size);
    }
    input_ = std::string(rest);
    return {};
}

Status Session::onFrame(FrameType type, std::string_view body) {
    switch (type) {
        case FrameType::PING:
            if (urgent_.size() > kMaxUrgent) {
                return Status::disconnected("the peer asks and does not read the answers");
            }
            sendFrame(FrameType::PONG, body.substr(0, 8));
            return {};
        case FrameType::PONG:
            return {};
        case FrameType::NOTIFICATION:
            return onPiece(body);
        case FrameType::ACK:
            return onAck(body);
        case FrameType::BYE: {
            auto reject = Reject::decode(body);
            if (!reject.ok()) {
                return reject.status();
            }
            Event event;
            event.kind = Event::Kind::BYE;
            event.status = Status::disconnected("agent \"" + peerName_ +
                                                "\" ended the session: " + reject.value().reason);
            events_.push_back(std::move(event));
            return {};
        }
        case FrameType::HOST_OFFER:
        case FrameType::MAP_REQUEST:
        case FrameType::MAP_REPLY:
        case FrameType::LANE_MESSAGE: {
            Event event;
            event.kind = Event::Kind::FRAME;
            event.type = type;
            event.text = std::string(body);
            events_.push_back(std::move(event));
            return {};
        }
        default:
            return Status::invalidParam("frame of type " + std::to_string(static_cast<int>(type)) +
                                        " does not belong on a control connection");
    }
}

Status Session::onPiece(std::string_view body) {
    auto decoded = NotificationPiece::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    const NotificationPiece& piece = decoded.value();
    if (piece.sequence <= received_) {
        return {};  // repeated after a reconnect
    }
    if (piece.sequence != received_ + 1) {
        return Status::invalidParam("notification " + std::to_string(piece.sequence) + " after " +
                                    std::to_string(received_));
    }
    if (piece.offset != partial_.size() || (piece.offset != 0 && piece.size != partialSize_)) {
        return Status::invalidParam("a piece of notification " + std::to_string(piece.sequence) +
                                    " is missing");
    }
    if (piece.offset == 0) {
        partialSize_ = piece.size;
        if (receivedCost_ + costOf(piece.size) - consumed_ > limits_.window) {
            return Status::invalidParam("more notifications than this agent allowed");
        }
    }
    partial_ += piece.bytes;
    if (partial_.size() < piece.size) {
        return {};
    }
    received_ = piece.sequence;
    receivedCost_ += costOf(piece.size);
    Event event;
    event.kind = Event::Kind::DELIVER;
    event.token = costOf(piece.size);
    event.sequence = piece.sequence;
    event.text = std::exchange(partial_, {});
    events_.push_back(std::move(event));
    return {};
}

Status Session::onAck(std::string_view body) {
    auto decoded = Ack::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    return applyAck(decoded.value().sequence, decoded.value().consumed);
}

Status Session::applyAck(uint64_t sequence, uint64_t consumed) {
    if (sequence >= nextSequence_ || consumed > begunCost_) {
        return Status::invalidParam("acknowledgement of notification " + std::to_string(sequence) +
                                    ", which has not been sent");
    }
    peerConsumed_ = std::max(peerConsumed_, consumed);
    while (!queue_.empty() && queue_.front().sequence != 0 && queue_.front().sequence <= sequence) {
        finishFirst({});
    }
    return {};
}

void Session::expireBlocked(Time now) {
    const bool blocked = cursor_ < queue_.size() && !mayBegin(queue_[cursor_]);
    if (!blocked) {
        blockedSince_ = {};
        return;
    }
    if (blockedSince_ == Time{}) {
        blockedSince_ = now;
        return;
    }
    if (now - blockedSince_ < limits_.peerTimeout) {
        return;
    }
    blockedSince_ = {};
    // Those before the cursor are sent and will be acknowledged; the rest waits for room in vain.
    const auto first = queue_.begin() + static_cast<std::ptrdiff_t>(cursor_);
    for (auto blocked_one = first; blocked_one != queue_.end(); ++blocked_one) {
        queuedCost_ -= costOf(blocked_one->message.size());
        Event event;
        event.token = blocked_one->token;
        event.status = Status::timeout("agent \"" + peerName_ +
                                       "\" does not take its notifications: no room for another "
                                       "within the peer timeout");
        events_.push_back(std::move(event));
    }
    queue_.erase(first, queue_.end());
}

Status Session::tick(Time now, Time& next) {
    now_ = now;
    const auto interval =
        std::max<std::chrono::milliseconds>(limits_.peerTimeout / 4, std::chrono::milliseconds(1));
    next = now + interval;
    if (!attached_) {
        return {};
    }
    expireBlocked(now);
    const auto silence = now - lastHeard_;
    if (silence >= limits_.peerTimeout) {
        return Status::disconnected(
            "agent \"" + peerName_ + "\" has been silent for " +
            std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(silence).count()) +
            " ms");
    }
    if (silence >= interval && now - lastPing_ >= interval) {
        lastPing_ = now;
        sendFrame(FrameType::PING, std::string_view("\0\0\0\0\0\0\0\0", 8));
    }
    next = std::min(next, lastHeard_ + limits_.peerTimeout);
    return {};
}

}  // namespace nixl::peer
