// See handshake.h.
#include "session/handshake.h"

#include <algorithm>

namespace nixl::peer {

namespace {

std::string frame(FrameType type, const auto& content) {
    base::ByteWriter out;
    const size_t begin = beginFrame(out, type);
    content.encode(out);
    endFrame(out, begin);
    return out.take();
}

std::string transcriptOf(std::string_view hello_body, const Challenge& challenge) {
    base::ByteWriter signed_part;
    challenge.encodeSigned(signed_part);
    base::Sha256 hash;
    hash.add(hello_body);
    hash.add(signed_part.bytes());
    return std::string(base::asView(hash.finish()));
}

base::Digest derive(std::string_view secret, std::string_view label, std::string_view transcript) {
    std::string message("nixl ");
    message += label;
    message += transcript;
    return base::hmacSha256(secret, message);
}

base::Digest connectorProof(std::string_view secret,
                            std::string_view transcript,
                            const Resume& resume) {
    base::ByteWriter more;
    more.raw(transcript);
    more.fixed(resume.epoch);
    more.fixed(resume.received);
    more.fixed(resume.consumed);
    return derive(secret, "connector", more.bytes());
}

// The grant alone, or the grant and the authentication key. An exchange has no grant: there the
// secret is a text that all know, and the key.
std::string controlSecret(std::string_view auth_key, std::string_view grant) {
    return std::string(base::asView(base::hmacSha256(auth_key, grant)));
}

constexpr std::string_view kExchangeSecret = "metadata exchange";

bool same(const base::Digest& a, const base::Digest& b) {
    return base::equalSecret(base::asView(a), base::asView(b));
}

const char* unwelcome(ConnectionKind kind) {
    switch (kind) {
        case ConnectionKind::DATA:
            return "no session for this data connection";
        case ConnectionKind::EXCHANGE:
            return "metadata is exchanged at listen_port, and this is another one";
        default:
            return "the metadata used is not valid here";
    }
}

const char* keysDiffer(bool ours, bool theirs) {
    if (ours == theirs) {
        return "the proof does not match: other metadata, or another auth_key";
    }
    return ours ? "this agent requires an auth_key and the peer has none"
                : "the peer uses an auth_key and this agent has none";
}

}  // namespace

Status rejectStatus(const Reject& reject, const Identity& peer) {
    const std::string text = "agent \"" + peer.name + "\" refused the session: " + reject.reason;
    switch (reject.code) {
        case RejectCode::VERSION:
            return Status::mismatch(text);
        case RejectCode::AUTHENTICATION:
        case RejectCode::UNKNOWN_GRANT:
        case RejectCode::NAME_TAKEN:
            return Status::notAllowed(text);
        default:
            return Status::disconnected(text);
    }
}

Connector::Connector(const HandshakeSelf& self,
                     const Identity& peer,
                     ConnectionKind kind,
                     std::string_view secret,
                     GrantId grant,
                     std::optional<Earlier> earlier)
    : peer_(peer),
      secret_(kind == ConnectionKind::DATA
                  ? std::string(secret)
                  : controlSecret(self.authKey,
                                  kind == ConnectionKind::EXCHANGE ? kExchangeSecret : secret)),
      usesKey_(!self.authKey.empty()),
      earlier_(earlier) {
    hello_.kind = kind;
    hello_.flags = usesKey_ ? kHelloUsesKey : 0;
    hello_.from = self.self;
    hello_.to = peer.incarnation;
    self.random(hello_.nonce);
    hello_.grant = grant;
    hello_.cookieAt = self.cookieAt;
    hello_.cookie = self.cookie;
    result_.kind = kind;
}

std::string Connector::start() {
    base::ByteWriter body;
    hello_.encode(body);
    helloBody_ = body.bytes();
    return std::string(kMagic) + frame(FrameType::HELLO, hello_);
}

Result<std::string> Connector::onFrame(FrameType type, std::string_view body) {
    if (type == FrameType::REJECT) {
        auto reject = Reject::decode(body);
        state_ = State::FAILED;
        if (!reject.ok()) {
            return reject.status();
        }
        refused_ = reject.value();
        return rejectStatus(*refused_, peer_);
    }
    if (state_ == State::AWAIT_CHALLENGE && type == FrameType::CHALLENGE) {
        auto answer = onChallenge(body);
        state_ = answer.ok() ? State::AWAIT_READY : State::FAILED;
        return answer;
    }
    if (state_ == State::AWAIT_READY && type == FrameType::READY) {
        const Status status = onReady(body);
        state_ = status.ok() ? State::DONE : State::FAILED;
        if (!status.ok()) {
            return status;
        }
        return std::string();
    }
    state_ = State::FAILED;
    return Status::disconnected("agent \"" + peer_.name + "\": frame of type " +
                                std::to_string(static_cast<int>(type)) +
                                " in the middle of the handshake");
}

Result<std::string> Connector::onChallenge(std::string_view body) {
    auto decoded = Challenge::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    const Challenge& challenge = decoded.value();
    if (challenge.version < kOldestVersion || challenge.version > kProtocolVersion) {
        return Status::mismatch("agent \"" + peer_.name + "\" chose protocol version " +
                                std::to_string(challenge.version));
    }
    if (hello_.kind == ConnectionKind::EXCHANGE) {
        peer_ = challenge.from;
    } else if (challenge.from != peer_) {
        return Status::disconnected("agent \"" + challenge.from.name + "\" answers in place of \"" +
                                    peer_.name + "\" (restarted?)");
    }
    const std::string transcript = transcriptOf(helloBody_, challenge);
    if (!same(challenge.proof, derive(secret_, "acceptor", transcript))) {
        const bool theirs = (challenge.flags & kHelloUsesKey) != 0;
        return Status::notAllowed("agent \"" + peer_.name + "\": " + keysDiffer(usesKey_, theirs));
    }
    Auth auth;
    if (earlier_) {
        auth.resume = earlier_->resume;
        auth.resumeProof = derive(base::asView(earlier_->key), "resume", transcript);
    }
    auth.proof = connectorProof(secret_, transcript, auth.resume);
    result_.peer = challenge.from;
    result_.key = derive(secret_, "session", transcript);
    result_.cookieAt = challenge.cookieAt;
    result_.cookie = challenge.cookie;
    result_.proven = usesKey_;
    return frame(FrameType::AUTH, auth);
}

Status Connector::onReady(std::string_view body) {
    auto ready = Ready::decode(body);
    if (!ready.ok()) {
        return ready.status();
    }
    result_.peerResume = ready.value().resume;
    result_.resumed = earlier_ && earlier_->resume.epoch != 0 &&
                      earlier_->resume.epoch == result_.peerResume.epoch;
    if (!result_.resumed && (result_.peerResume.received != 0 || result_.peerResume.consumed != 0 ||
                             result_.peerResume.epoch == 0)) {
        return Status::disconnected("agent \"" + peer_.name + "\": READY of another session");
    }
    return {};
}

Acceptor::Acceptor(const HandshakeSelf& self, Admission& admission)
    : self_(self), authKey_(self.authKey), admission_(admission) {}

Status Acceptor::refuse(RejectCode code, std::string reason) {
    state_ = State::FAILED;
    reject_.code = code;
    reject_.reason = std::move(reject_.reason.empty() ? reason : reject_.reason);
    return Status::disconnected(
        "refused a connection" +
        (hello_.from.name.empty() ? std::string() : " of \"" + hello_.from.name + "\"") + ": " +
        reject_.reason);
}

std::string Acceptor::closeReason() const {
    return frame(FrameType::REJECT, reject_);
}

Result<std::string> Acceptor::onFrame(FrameType type, std::string_view body) {
    if (state_ == State::AWAIT_HELLO && type == FrameType::HELLO) {
        return onHello(body);
    }
    if (state_ == State::AWAIT_AUTH && type == FrameType::AUTH) {
        return onAuth(body);
    }
    return refuse(RejectCode::PROTOCOL, "frame of type " + std::to_string(static_cast<int>(type)) +
                                            " in the middle of the handshake");
}

std::optional<std::string> Acceptor::secretFor(const Hello& hello) {
    if (hello.kind == ConnectionKind::DATA) {
        const auto key = admission_.sessionKey(hello.from);
        return key ? std::optional<std::string>(base::asView(*key)) : std::nullopt;
    }
    if (hello.kind == ConnectionKind::EXCHANGE) {
        return admission_.exchanges()
                   ? std::optional<std::string>(controlSecret(authKey_, kExchangeSecret))
                   : std::nullopt;
    }
    const auto key = admission_.grantKey(hello.grant);
    return key ? std::optional<std::string>(controlSecret(authKey_, base::asView(*key)))
               : std::nullopt;
}

Result<std::string> Acceptor::onHello(std::string_view body) {
    auto decoded = Hello::decode(body);
    if (!decoded.ok()) {
        return refuse(RejectCode::PROTOCOL, decoded.status().message());
    }
    hello_ = decoded.value();
    if (hello_.oldestVersion > kProtocolVersion || hello_.newestVersion < kOldestVersion) {
        return refuse(RejectCode::VERSION, "protocol versions " +
                                               std::to_string(hello_.oldestVersion) + " to " +
                                               std::to_string(hello_.newestVersion) + " offered, " +
                                               std::to_string(kOldestVersion) + " to " +
                                               std::to_string(kProtocolVersion) + " understood");
    }
    const bool anybody = hello_.kind == ConnectionKind::EXCHANGE && hello_.to == Key{};
    if (hello_.to != self_.self.incarnation && !anybody) {
        return refuse(RejectCode::WRONG_AGENT,
                      "no such agent here; this is \"" + self_.self.name + "\"");
    }
    const auto secret = secretFor(hello_);
    if (!secret) {
        return refuse(RejectCode::UNKNOWN_GRANT, unwelcome(hello_.kind));
    }
    if (hello_.kind == ConnectionKind::CONTROL) {
        if (const auto no = admission_.checkIncoming(hello_.from)) {
            return refuse(no->code, no->reason);
        }
    }
    secret_ = *secret;
    Challenge challenge;
    challenge.version = std::min(hello_.newestVersion, kProtocolVersion);
    challenge.flags = authKey_.empty() ? 0 : kHelloUsesKey;
    challenge.from = self_.self;
    self_.random(challenge.nonce);
    challenge.cookieAt = self_.cookieAt;
    challenge.cookie = self_.cookie;
    transcript_ = transcriptOf(body, challenge);
    challenge.proof = derive(secret_, "acceptor", transcript_);
    state_ = State::AWAIT_AUTH;
    return frame(FrameType::CHALLENGE, challenge);
}

Result<std::string> Acceptor::onAuth(std::string_view body) {
    auto decoded = Auth::decode(body);
    if (!decoded.ok()) {
        return refuse(RejectCode::PROTOCOL, decoded.status().message());
    }
    const Auth& auth = decoded.value();
    if (!same(auth.proof, connectorProof(secret_, transcript_, auth.resume))) {
        return refuse(RejectCode::AUTHENTICATION,
                      keysDiffer(!authKey_.empty(), (hello_.flags & kHelloUsesKey) != 0));
    }
    result_.peer = hello_.from;
    result_.kind = hello_.kind;
    result_.key = derive(secret_, "session", transcript_);
    result_.cookieAt = hello_.cookieAt;
    result_.cookie = hello_.cookie;
    result_.proven = !authKey_.empty();
    Ready ready;
    if (hello_.kind == ConnectionKind::CONTROL) {
        const auto earlier = admission_.earlier(hello_.from);
        if (earlier && earlier->resume.epoch != 0 && earlier->resume.epoch == auth.resume.epoch &&
            same(auth.resumeProof, derive(base::asView(earlier->key), "resume", transcript_))) {
            result_.resumed = true;
            result_.peerResume = auth.resume;
            ready.resume = earlier->resume;
        }
        if (const auto no = admission_.admit(result_)) {
            return refuse(no->code, no->reason);
        }
    }
    if (!result_.resumed) {
        Key random{};
        self_.random(random);
        base::ByteReader in(base::asView(random));
        ready.resume = {in.fixed<uint64_t>() | 1, 0, 0};
        result_.peerResume = ready.resume;
    }
    state_ = State::DONE;
    return frame(FrameType::READY, ready);
}

}  // namespace nixl::peer
