// The frames that travel between two agents: layout, limits, encoding and bounds-checked decoding.
// docs/protocol.md describes them for other implementations. Values; not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

#include "base/bytes.h"
#include "base/sha256.h"
#include "session/network_access.h"

namespace nixl::peer {

// A connection begins with the magic from the side that connected; every frame is a header of
// kFrameHeader bytes {length u32, type u8, flags u8 = 0, reserved u16 = 0} and `length` bytes.
inline constexpr std::string_view kMagic = "NIXLSES1";
inline constexpr size_t kFrameHeader = 8;
inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr uint16_t kOldestVersion = 1;

// Limits. A peer that passes one of them loses its connection.
inline constexpr size_t kMaxHandshakeFrame = 4 << 10;
inline constexpr size_t kMaxControlFrame = 80 << 10;
inline constexpr size_t kMaxRequestFrame = 1 << 20;
inline constexpr size_t kMaxName = 1024;
inline constexpr size_t kMaxReason = 512;
inline constexpr size_t kNotificationPiece = 64 << 10;
inline constexpr size_t kMaxNotification = 1 << 20;
inline constexpr size_t kMaxLaneMessage = 64 << 10;

enum class FrameType : uint8_t {
    // Handshake.
    HELLO = 1,
    CHALLENGE = 2,
    AUTH = 3,
    READY = 4,
    REJECT = 5,
    // Control connection.
    PING = 16,
    PONG = 17,
    NOTIFICATION = 18,
    ACK = 19,
    BYE = 20,
    HOST_OFFER = 21,
    MAP_REQUEST = 22,
    MAP_REPLY = 23,
    LANE_MESSAGE = 24,
    // Data connections.
    GRANT = 32,
    WRITE = 33,
    READ = 34,
    REPLY = 35,
};

struct FrameHeader {
    uint32_t length = 0;
    FrameType type{};
};

// Room for a header, patched by endFrame.
size_t beginFrame(base::ByteWriter& out, FrameType type);
void endFrame(base::ByteWriter& out, size_t begin);
// The header at the start of `bytes` (at least kFrameHeader of them); fails on unknown types, set
// reserved bits, and lengths past the limit of the type.
Result<FrameHeader> readHeader(std::string_view bytes);

// The frame at the start of some bytes.
struct FrameView {
    FrameHeader header;
    std::string_view body;  // where it is whole
    size_t size = 0;        // of header and body; 0: not even the header is there
    bool whole = false;
};
// The only place that cuts bytes into frames; fails as readHeader().
Result<FrameView> nextFrame(std::string_view bytes);

// EXCHANGE: metadata, at the port of an agent's listener (src/exchange_tcp/).
enum class ConnectionKind : uint8_t { CONTROL = 0, DATA = 1, EXCHANGE = 2 };

inline constexpr uint8_t kHelloUsesKey = 1;  // flag: an authentication key is configured

// First frame of a connection, from the side that connected.
struct Hello {
    uint16_t oldestVersion = kOldestVersion;
    uint16_t newestVersion = kProtocolVersion;
    ConnectionKind kind = ConnectionKind::CONTROL;
    uint8_t flags = 0;
    Identity from;
    Key to{};  // incarnation of the agent meant; exchange: zeros, whoever answers
    Key nonce{};
    GrantId grant = 0;      // control: the grant proved
    uint64_t cookieAt = 0;  // control: address of 16 bytes in the sender's memory, or 0
    Key cookie{};           // control: what stands there
    void encode(base::ByteWriter& out) const;
    static Result<Hello> decode(std::string_view body);
};

// The answer. `proof` covers everything before it and the Hello.
struct Challenge {
    uint16_t version = kProtocolVersion;
    uint8_t flags = 0;
    Identity from;
    Key nonce{};
    uint64_t cookieAt = 0;
    Key cookie{};
    base::Digest proof{};
    // The signed part, then the proof.
    void encodeSigned(base::ByteWriter& out) const;
    void encode(base::ByteWriter& out) const;
    static Result<Challenge> decode(std::string_view body);
};

// What either side has kept of an earlier connection of the same two incarnations.
struct Resume {
    uint64_t epoch = 0;     // random, drawn by the accepting side with a fresh start; 0: nothing
    uint64_t received = 0;  // last notification received completely
    uint64_t consumed = 0;  // bytes the application has taken
    bool operator==(const Resume&) const = default;
};

struct Auth {
    base::Digest proof{};
    Resume resume;
    base::Digest resumeProof{};  // by the earlier connection's key; zero without
    void encode(base::ByteWriter& out) const;
    static Result<Auth> decode(std::string_view body);
};

struct Ready {
    Resume resume;  // epoch: the one both go on with
    void encode(base::ByteWriter& out) const;
    static Result<Ready> decode(std::string_view body);
};

enum class RejectCode : uint8_t {
    VERSION = 1,      // no common version
    WRONG_AGENT = 2,  // another incarnation answers here
    UNKNOWN_GRANT = 3,
    AUTHENTICATION = 4,
    DUPLICATE = 5,   // the peer's own connection is preferred; wait for it
    NAME_TAKEN = 6,  // a live agent of this name has a session
    LIMIT = 7,
    PROTOCOL = 8,
    CLOSING = 9,
};
inline constexpr uint8_t kLastRejectCode = 9;

// The end of a connection, with the reason: instead of any handshake answer (REJECT), or of a
// session for good (BYE).
struct Reject {
    RejectCode code = RejectCode::PROTOCOL;
    std::string reason;
    void encode(base::ByteWriter& out) const;
    static Result<Reject> decode(std::string_view body);
};

// A piece of a notification. Pieces of one come in order, and one notification after the other.
struct NotificationPiece {
    uint64_t sequence = 0;
    uint64_t size = 0;  // of the whole
    uint64_t offset = 0;
    std::string_view bytes;
    void encode(base::ByteWriter& out) const;
    static Result<NotificationPiece> decode(std::string_view body);
};

// Notifications up to `sequence` are queued at the application; it has taken `consumed` bytes.
struct Ack {
    uint64_t sequence = 0;
    uint64_t consumed = 0;
    void encode(base::ByteWriter& out) const;
    static Result<Ack> decode(std::string_view body);
};

// For a plugin's lane: an opaque message.
struct LaneMessage {
    std::string_view lane;
    std::string_view bytes;
    void encode(base::ByteWriter& out) const;
    static Result<LaneMessage> decode(std::string_view body);
};

// Proof of a grant on a data connection, before the first request that names it.
struct GrantProof {
    GrantId grant = 0;
    base::Digest proof{};
    void encode(base::ByteWriter& out) const;
    static Result<GrantProof> decode(std::string_view body);
};

// The public name of a grant, and the proofs made with it.
GrantId grantId(const Key& grant);
base::Digest grantProof(const Key& grant, const base::Digest& session_key);

}  // namespace nixl::peer
