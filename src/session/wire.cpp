// See wire.h.
#include "session/wire.h"

#include <algorithm>

#include "base/utf8.h"

namespace nixl::peer {

namespace {

Status malformed(const char* frame) {
    return Status::invalidParam(std::string("malformed ") + frame + " frame");
}

template <size_t N>
void put(base::ByteWriter& out, const std::array<uint8_t, N>& bytes) {
    out.raw(base::asView(bytes));
}

template <size_t N>
void get(base::ByteReader& in, std::array<uint8_t, N>& bytes) {
    const std::string_view raw = in.raw(N);
    std::copy(raw.begin(), raw.end(), bytes.begin());
}

void put(base::ByteWriter& out, const Identity& who) {
    out.text(who.name);
    put(out, who.incarnation);
}

void get(base::ByteReader& in, Identity& who) {
    who.name = std::string(in.text());
    get(in, who.incarnation);
    if (who.name.empty() || who.name.size() > kMaxName || !base::isUtf8(who.name)) {
        in.fail();
    }
}

void put(base::ByteWriter& out, const Resume& resume) {
    out.fixed(resume.epoch);
    out.fixed(resume.received);
    out.fixed(resume.consumed);
}

void get(base::ByteReader& in, Resume& resume) {
    resume.epoch = in.fixed<uint64_t>();
    resume.received = in.fixed<uint64_t>();
    resume.consumed = in.fixed<uint64_t>();
}

// A frame is read to its last byte: what a later version adds needs a new version.
bool complete(const base::ByteReader& in) {
    return in.ok() && in.atEnd();
}

size_t limitOf(FrameType type) {
    switch (type) {
        case FrameType::HELLO:
        case FrameType::CHALLENGE:
        case FrameType::AUTH:
        case FrameType::READY:
        case FrameType::REJECT:
        case FrameType::BYE:
        case FrameType::PING:
        case FrameType::PONG:
        case FrameType::ACK:
        case FrameType::HOST_OFFER:
        case FrameType::MAP_REQUEST:
        case FrameType::GRANT:
            return kMaxHandshakeFrame;
        case FrameType::NOTIFICATION:
        case FrameType::MAP_REPLY:
        case FrameType::LANE_MESSAGE:
            return kMaxControlFrame;
        case FrameType::WRITE:
        case FrameType::READ:
        case FrameType::REPLY:
            return kMaxRequestFrame;
    }
    return 0;
}

}  // namespace

size_t beginFrame(base::ByteWriter& out, FrameType type) {
    const size_t begin = out.size();
    out.fixed<uint32_t>(0);
    out.fixed(static_cast<uint8_t>(type));
    out.fixed<uint8_t>(0);
    out.fixed<uint16_t>(0);
    return begin;
}

void endFrame(base::ByteWriter& out, size_t begin) {
    out.patch32(begin, static_cast<uint32_t>(out.size() - begin - kFrameHeader));
}

Result<FrameHeader> readHeader(std::string_view bytes) {
    base::ByteReader in(bytes.substr(0, kFrameHeader));
    FrameHeader header;
    header.length = in.fixed<uint32_t>();
    header.type = static_cast<FrameType>(in.fixed<uint8_t>());
    const auto flags = in.fixed<uint8_t>();
    const auto reserved = in.fixed<uint16_t>();
    const size_t limit = limitOf(header.type);
    if (!in.ok() || limit == 0 || flags != 0 || reserved != 0) {
        return Status::invalidParam("not a frame header (type " +
                                    std::to_string(static_cast<int>(header.type)) + ")");
    }
    if (header.length > limit) {
        return Status::invalidParam(
            "frame of type " + std::to_string(static_cast<int>(header.type)) + " with " +
            std::to_string(header.length) + " bytes (at most " + std::to_string(limit) + ")");
    }
    return header;
}

Result<FrameView> nextFrame(std::string_view bytes) {
    FrameView frame;
    if (bytes.size() < kFrameHeader) {
        return frame;
    }
    auto header = readHeader(bytes);
    if (!header.ok()) {
        return header.status();
    }
    frame.header = header.value();
    frame.size = kFrameHeader + frame.header.length;
    frame.whole = bytes.size() >= frame.size;
    if (frame.whole) {
        frame.body = bytes.substr(kFrameHeader, frame.header.length);
    }
    return frame;
}

void Hello::encode(base::ByteWriter& out) const {
    out.fixed(oldestVersion);
    out.fixed(newestVersion);
    out.fixed(static_cast<uint8_t>(kind));
    out.fixed(flags);
    put(out, from);
    put(out, to);
    put(out, nonce);
    out.fixed(grant);
    out.fixed(cookieAt);
    put(out, cookie);
}

Result<Hello> Hello::decode(std::string_view body) {
    base::ByteReader in(body);
    Hello hello;
    hello.oldestVersion = in.fixed<uint16_t>();
    hello.newestVersion = in.fixed<uint16_t>();
    const auto kind = in.fixed<uint8_t>();
    hello.flags = in.fixed<uint8_t>();
    get(in, hello.from);
    get(in, hello.to);
    get(in, hello.nonce);
    hello.grant = in.fixed<uint64_t>();
    hello.cookieAt = in.fixed<uint64_t>();
    get(in, hello.cookie);
    if (!complete(in) || kind > 2 || hello.oldestVersion > hello.newestVersion) {
        return malformed("HELLO");
    }
    hello.kind = static_cast<ConnectionKind>(kind);
    return hello;
}

void Challenge::encodeSigned(base::ByteWriter& out) const {
    out.fixed(version);
    out.fixed(flags);
    put(out, from);
    put(out, nonce);
    out.fixed(cookieAt);
    put(out, cookie);
}

void Challenge::encode(base::ByteWriter& out) const {
    encodeSigned(out);
    put(out, proof);
}

Result<Challenge> Challenge::decode(std::string_view body) {
    base::ByteReader in(body);
    Challenge challenge;
    challenge.version = in.fixed<uint16_t>();
    challenge.flags = in.fixed<uint8_t>();
    get(in, challenge.from);
    get(in, challenge.nonce);
    challenge.cookieAt = in.fixed<uint64_t>();
    get(in, challenge.cookie);
    get(in, challenge.proof);
    if (!complete(in)) {
        return malformed("CHALLENGE");
    }
    return challenge;
}

void Auth::encode(base::ByteWriter& out) const {
    put(out, proof);
    put(out, resume);
    put(out, resumeProof);
}

Result<Auth> Auth::decode(std::string_view body) {
    base::ByteReader in(body);
    Auth auth;
    get(in, auth.proof);
    get(in, auth.resume);
    get(in, auth.resumeProof);
    if (!complete(in)) {
        return malformed("AUTH");
    }
    return auth;
}

void Ready::encode(base::ByteWriter& out) const {
    put(out, resume);
}

Result<Ready> Ready::decode(std::string_view body) {
    base::ByteReader in(body);
    Ready ready;
    get(in, ready.resume);
    if (!complete(in)) {
        return malformed("READY");
    }
    return ready;
}

void Reject::encode(base::ByteWriter& out) const {
    out.fixed(static_cast<uint8_t>(code));
    out.text(std::string_view(reason).substr(0, kMaxReason));
}

Result<Reject> Reject::decode(std::string_view body) {
    base::ByteReader in(body);
    Reject reject;
    const auto code = in.fixed<uint8_t>();
    const std::string_view reason = in.text();
    if (!complete(in) || code == 0 || code > kLastRejectCode || reason.size() > kMaxReason) {
        return malformed("REJECT");
    }
    reject.code = static_cast<RejectCode>(code);
    for (const char c : reason) {  // it will be shown to people
        reject.reason += c >= ' ' && c != '\x7f' ? c : '?';
    }
    return reject;
}

void NotificationPiece::encode(base::ByteWriter& out) const {
    out.varint(sequence);
    out.varint(size);
    out.varint(offset);
    out.raw(bytes);
}

Result<NotificationPiece> NotificationPiece::decode(std::string_view body) {
    base::ByteReader in(body);
    NotificationPiece piece;
    piece.sequence = in.varint();
    piece.size = in.varint();
    piece.offset = in.varint();
    piece.bytes = in.raw(in.left());
    if (!in.ok() || piece.size > kMaxNotification || piece.offset > piece.size ||
        piece.bytes.size() > piece.size - piece.offset || piece.bytes.size() > kNotificationPiece ||
        (piece.bytes.empty() && piece.size != 0)) {
        return malformed("NOTIFICATION");
    }
    return piece;
}

void Ack::encode(base::ByteWriter& out) const {
    out.varint(sequence);
    out.varint(consumed);
}

Result<Ack> Ack::decode(std::string_view body) {
    base::ByteReader in(body);
    Ack ack;
    ack.sequence = in.varint();
    ack.consumed = in.varint();
    if (!complete(in)) {
        return malformed("ACK");
    }
    return ack;
}

void LaneMessage::encode(base::ByteWriter& out) const {
    out.text(lane);
    out.raw(bytes);
}

Result<LaneMessage> LaneMessage::decode(std::string_view body) {
    base::ByteReader in(body);
    LaneMessage message;
    message.lane = in.text();
    message.bytes = in.raw(in.left());
    if (!in.ok() || message.lane.empty() || message.lane.size() > 32) {
        return malformed("LANE_MESSAGE");
    }
    return message;
}

void GrantProof::encode(base::ByteWriter& out) const {
    out.fixed(grant);
    put(out, proof);
}

Result<GrantProof> GrantProof::decode(std::string_view body) {
    base::ByteReader in(body);
    GrantProof proof;
    proof.grant = in.fixed<uint64_t>();
    get(in, proof.proof);
    if (!complete(in)) {
        return malformed("GRANT");
    }
    return proof;
}

GrantId grantId(const Key& grant) {
    base::Sha256 hash;
    hash.add("nixl grant id");
    hash.add(base::asView(grant));
    const base::Digest digest = hash.finish();
    base::ByteReader in(base::asView(digest));
    return in.fixed<uint64_t>();
}

base::Digest grantProof(const Key& grant, const base::Digest& session_key) {
    std::string message = "nixl grant";
    message += base::asView(session_key);
    return base::hmacSha256(base::asView(grant), message);
}

}  // namespace nixl::peer
