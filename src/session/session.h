// What two agents owe each other, without I/O: notifications in order and exactly once, credits,
// heartbeats. Lives as long as both know each other; connections come and go beneath it (attach,
// detach). Bytes and time go in; bytes and events come out.
// Values; not thread-safe: its owner locks.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

#include "session/wire.h"

namespace nixl::peer {

using Time = std::chrono::steady_clock::time_point;

struct SessionLimits {
    std::chrono::milliseconds peerTimeout{10'000};
    uint64_t window = 64 << 20;  // bytes of notifications that the application has not yet taken
    uint64_t queue = 64 << 20;   // bytes of notifications that wait here
};

// What a notification counts for, against the limits.
inline constexpr uint64_t kNotificationCost = 64;

class Session {
  public:
    struct Event {
        enum class Kind : uint8_t {
            SENT,     // notification `token` is queued at the peer, or has failed with `status`
            DELIVER,  // `text` is a notification for the application, `token` its cost
            FRAME,    // `type` and `text`: a frame that is the owner's business
            BYE,      // the peer ended the session for good: `status`
        };
        Kind kind = Kind::SENT;
        uint64_t token = 0;
        uint64_t sequence = 0;  // DELIVER: its place
        FrameType type{};
        Status status;
        std::string text;
    };

    Session(std::string peer_name, const SessionLimits& limits);

    // A connection is ready. `resumed`: the epoch goes on, else everything starts anew.
    void attach(Time now, const Resume& peer, bool resumed);
    // The connection is gone; what waits goes on waiting.
    void detach();
    bool attached() const { return attached_; }
    // The end: everything that waits fails with `why`.
    void fail(const Status& why);
    // For the handshake of the next connection; epoch 0 before the first.
    Resume resume() const;

    // Takes a notification; its end comes as a SENT event with `token`. An error where a limit is
    // reached: then no event comes.
    Status send(std::string message, uint64_t token);
    // Takes back a notification of which nothing has been sent: no event comes. False where it is
    // too late.
    bool withdraw(uint64_t token);
    // The notification with this place is in the application's queue: only now may the sender know.
    void delivered(uint64_t epoch, uint64_t sequence);
    // The application has taken notifications of this cost that came in this epoch.
    void consumed(uint64_t epoch, uint64_t cost);
    uint64_t epoch() const { return epoch_; }
    // An urgent frame of the owner: goes before waiting notifications.
    void sendFrame(FrameType type, std::string_view body);

    // Bytes from the connection, cut anywhere. An error is a violation of the protocol.
    Status receive(std::string_view bytes, Time now);
    // Appends bytes to send until `out` holds `target` of them or nothing is left.
    void produce(std::string& out, size_t target);
    bool wantsToSend() const;

    // Does what is due and says when to come again. DISCONNECTED status: the peer has been silent
    // for peerTimeout.
    Status tick(Time now, Time& next);

    std::vector<Event> takeEvents() { return std::exchange(events_, {}); }
    bool hasEvents() const { return !events_.empty(); }

    // For tests, statistics and dumps.
    size_t waiting() const { return queue_.size(); }
    uint64_t queuedBytes() const { return queuedCost_; }
    uint64_t receivedSequence() const { return received_; }
    size_t bufferedInput() const { return input_.size() + partial_.size(); }

  private:
    struct Outgoing {
        uint64_t sequence = 0;  // 0: not yet begun
        uint64_t token = 0;
        std::string message;
    };

    static uint64_t costOf(size_t size) { return size + kNotificationCost; }
    Status onFrame(FrameType type, std::string_view body);
    Status onPiece(std::string_view body);
    Status onAck(std::string_view body);
    Status applyAck(uint64_t sequence, uint64_t consumed);
    void finishFirst(Status status);
    void restart();
    bool mayBegin(const Outgoing& next) const;
    void producePiece(base::ByteWriter& out);
    void expireBlocked(Time now);

    const std::string peerName_;
    const SessionLimits limits_;
    bool attached_ = false;
    uint64_t epoch_ = 0;

    // Sending: queue_[0, cursor_) is sent and not acknowledged, queue_[cursor_] is being sent from
    // offset_.
    std::deque<Outgoing> queue_;
    size_t cursor_ = 0;
    size_t offset_ = 0;
    uint64_t nextSequence_ = 1;
    uint64_t queuedCost_ = 0;
    uint64_t begunCost_ = 0;     // of all notifications of this epoch that were begun
    uint64_t peerConsumed_ = 0;  // of those, what the peer's application has taken
    Time blockedSince_{};        // when credits ran out; zero: they have not
    std::string urgent_;

    // Receiving.
    std::string input_;
    std::string partial_;
    uint64_t partialSize_ = 0;
    uint64_t received_ = 0;
    uint64_t delivered_ = 0;  // of those, what the owner has confirmed
    uint64_t receivedCost_ = 0;
    uint64_t consumed_ = 0;
    bool ackDue_ = false;

    Time lastHeard_{};
    Time lastPing_{};
    Time now_{};
    std::vector<Event> events_;
};

}  // namespace nixl::peer
