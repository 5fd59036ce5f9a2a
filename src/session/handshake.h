// The handshake of one connection, without I/O: frames go in, frames to send come out. Both sides
// prove that they hold the same secret (control: the grant and the optional authentication key;
// data: the session's key) over everything both have said, so nothing can be reflected or mixed.
// Values; not thread-safe.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "nixl/error.h"

#include "session/wire.h"

namespace nixl::peer {

// What a finished handshake leaves behind.
struct HandshakeResult {
    Identity peer;
    ConnectionKind kind = ConnectionKind::CONTROL;
    base::Digest key{};     // of this connection
    Resume peerResume;      // what the peer has received; epoch: the one to go on with
    bool resumed = false;   // the epoch is one that this side already had
    bool proven = false;    // the peer holds the authentication key
    uint64_t cookieAt = 0;  // peer's cookie, to verify an attach
    Key cookie{};
};

// What this side has kept of an earlier connection to the same incarnation.
struct Earlier {
    Resume resume;
    base::Digest key{};
};

struct HandshakeSelf {
    Identity self;
    std::string_view authKey;
    uint64_t cookieAt = 0;
    Key cookie{};
    // Where nonces and epochs come from. Only tests that compare bytes set another.
    void (*random)(std::span<uint8_t>) = base::randomBytes;
};

// A Status of a refused handshake and the other way round.
Status rejectStatus(const Reject& reject, const Identity& peer);

class Connector {
  public:
    // Control: `secret` is the grant's key; data: the session's; exchange: empty, and `peer` may be
    // unknown: its name, where there is one, is for messages.
    Connector(const HandshakeSelf& self,
              const Identity& peer,
              ConnectionKind kind,
              std::string_view secret,
              GrantId grant,
              std::optional<Earlier> earlier);
    // The first bytes to send.
    std::string start();
    // Takes one frame; gives what to send, perhaps nothing.
    Result<std::string> onFrame(FrameType type, std::string_view body);
    bool done() const { return state_ == State::DONE; }
    const HandshakeResult& result() const { return result_; }
    // Why the other side refused, where it did.
    const std::optional<Reject>& refused() const { return refused_; }

  private:
    enum class State : uint8_t { AWAIT_CHALLENGE, AWAIT_READY, DONE, FAILED };
    Result<std::string> onChallenge(std::string_view body);
    Status onReady(std::string_view body);

    Hello hello_;
    Identity peer_;
    std::string helloBody_;
    std::string secret_;
    bool usesKey_;
    std::optional<Earlier> earlier_;
    State state_ = State::AWAIT_CHALLENGE;
    HandshakeResult result_;
    std::optional<Reject> refused_;
};

// What the accepting side must know; asked while the handshake runs.
class Admission {
  public:
    virtual ~Admission() = default;
    // The key that a control connection naming `grant` must prove.
    virtual std::optional<Key> grantKey(GrantId grant) = 0;
    // The key of the live session with `peer`, for data connections.
    virtual std::optional<base::Digest> sessionKey(const Identity& peer) = 0;
    // Whether metadata is exchanged here.
    virtual bool exchanges() const { return false; }
    // Whether a control connection of `peer` is welcome as things stand (before any proof).
    virtual std::optional<Reject> checkIncoming(const Identity& peer) = 0;
    // What is kept of `peer`, for going on with it.
    virtual std::optional<Earlier> earlier(const Identity& peer) = 0;
    // Whether the peer, which has proved what `result` says, may have the name.
    virtual std::optional<Reject> admit(const HandshakeResult& result) = 0;
};

class Acceptor {
  public:
    Acceptor(const HandshakeSelf& self, Admission& admission);
    // As Connector's. On error the returned status is for the log, and closeReason() is to be sent
    // before the connection is closed.
    Result<std::string> onFrame(FrameType type, std::string_view body);
    bool done() const { return state_ == State::DONE; }
    const HandshakeResult& result() const { return result_; }
    std::string closeReason() const;

  private:
    enum class State : uint8_t { AWAIT_HELLO, AWAIT_AUTH, DONE, FAILED };
    Result<std::string> onHello(std::string_view body);
    Result<std::string> onAuth(std::string_view body);
    Status refuse(RejectCode code, std::string reason);
    std::optional<std::string> secretFor(const Hello& hello);

    const HandshakeSelf self_;
    std::string authKey_;
    Admission& admission_;
    State state_ = State::AWAIT_HELLO;
    Hello hello_;
    std::string secret_;
    std::string transcript_;
    HandshakeResult result_;
    Reject reject_;
};

}  // namespace nixl::peer
