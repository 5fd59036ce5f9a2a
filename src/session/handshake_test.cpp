// The handshake: both sides agree, and whoever lacks a secret, is somebody else or replays gets
// nothing.
#include "session/handshake.h"

#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nixl::peer {
namespace {

class TestAdmission : public Admission {
  public:
    std::optional<Key> grantKey(GrantId grant) override {
        const auto found = grants.find(grant);
        return found == grants.end() ? std::nullopt : std::optional(found->second);
    }
    std::optional<base::Digest> sessionKey(const Identity& /*peer*/) override { return session; }
    bool exchanges() const override { return offersExchange; }
    std::optional<Reject> checkIncoming(const Identity& /*peer*/) override { return refusal; }
    std::optional<Earlier> earlier(const Identity& /*peer*/) override { return kept; }
    std::optional<Reject> admit(const HandshakeResult& result) override {
        admitted = result;
        return admission;
    }

    bool offersExchange = false;
    std::map<GrantId, Key> grants;
    std::optional<base::Digest> session;
    std::optional<Reject> refusal;
    std::optional<Reject> admission;
    std::optional<Earlier> kept;
    std::optional<HandshakeResult> admitted;
};

const Identity kAlice{"alice", {1}};
const Identity kBob{"bob", {2}};
const Key kGrant{7, 7, 7};

struct Frame {
    FrameType type{};
    std::string body;
};

Frame parse(std::string bytes) {
    if (bytes.starts_with(kMagic)) {
        bytes.erase(0, kMagic.size());
    }
    auto header = readHeader(bytes);
    EXPECT_TRUE(header.ok());
    EXPECT_EQ(bytes.size(), kFrameHeader + header.value().length);
    return {header.value().type, bytes.substr(kFrameHeader)};
}

class HandshakeTest : public testing::Test {
  protected:
    HandshakeTest() { admission_.grants[grantId(kGrant)] = kGrant; }

    // Runs it to the end or the first error (returned).
    Status run(Connector& connector, Acceptor& acceptor) {
        Frame frame = parse(connector.start());
        while (!connector.done()) {
            auto answer = acceptor.onFrame(frame.type, frame.body);
            if (!answer.ok()) {
                frame = parse(acceptor.closeReason());
            } else {
                frame = parse(answer.value());
            }
            auto next = connector.onFrame(frame.type, frame.body);
            if (!next.ok()) {
                return next.status();
            }
            if (!next.value().empty()) {
                frame = parse(next.value());
            }
        }
        EXPECT_TRUE(acceptor.done());
        return {};
    }
    Connector control(const std::string& key = {}, const Key& grant = kGrant) {
        alice_.authKey = key;
        return Connector(alice_, kBob, ConnectionKind::CONTROL, base::asView(grant), grantId(grant),
                         earlier_);
    }
    Acceptor acceptor(const std::string& key = {}) {
        bob_.authKey = key;
        return Acceptor(bob_, admission_);
    }

    HandshakeSelf alice_{kAlice, {}, 11, {3}};
    HandshakeSelf bob_{kBob, {}, 22, {4}};
    TestAdmission admission_;
    std::optional<Earlier> earlier_;
};

TEST_F(HandshakeTest, BothAgree) {
    auto connector = control();
    auto accept = acceptor();
    ASSERT_TRUE(run(connector, accept).ok());
    EXPECT_EQ(connector.result().key, accept.result().key);
    EXPECT_EQ(connector.result().peer, kBob);
    EXPECT_EQ(accept.result().peer, kAlice);
    EXPECT_EQ(connector.result().cookieAt, 22U);
    EXPECT_EQ(accept.result().cookie, (Key{3}));
    EXPECT_FALSE(accept.result().resumed);
    EXPECT_FALSE(accept.result().proven);
    EXPECT_NE(accept.result().peerResume.epoch, 0U);
    EXPECT_EQ(accept.result().peerResume, connector.result().peerResume);
}

TEST_F(HandshakeTest, AnExchangeIsWithWhoeverAnswersWhereItIsOffered) {
    const std::string key = "sixteen bytes or more";
    for (const std::string& theirs : {std::string(), key}) {
        alice_.authKey = theirs;
        admission_.offersExchange = true;
        Connector connector(alice_, {}, ConnectionKind::EXCHANGE, {}, 0, {});
        auto accept = acceptor(theirs);
        ASSERT_TRUE(run(connector, accept).ok());
        EXPECT_EQ(connector.result().peer, kBob);
        EXPECT_EQ(accept.result().peer, kAlice);
        EXPECT_EQ(accept.result().kind, ConnectionKind::EXCHANGE);
        EXPECT_EQ(accept.result().proven, !theirs.empty());

        admission_.offersExchange = false;
        Connector elsewhere(alice_, {}, ConnectionKind::EXCHANGE, {}, 0, {});
        auto session = acceptor(theirs);
        const Status refused = run(elsewhere, session);
        EXPECT_EQ(refused.code(), ErrorCode::NOT_ALLOWED);
        EXPECT_THAT(refused.message(), testing::HasSubstr("listen_port"));
    }
    admission_.offersExchange = true;
    alice_.authKey = "";
    Connector stranger(alice_, {}, ConnectionKind::EXCHANGE, {}, 0, {});
    auto careful = acceptor(key);
    EXPECT_EQ(run(stranger, careful).code(), ErrorCode::NOT_ALLOWED);
    EXPECT_FALSE(careful.done());
}

TEST_F(HandshakeTest, SharedKeyProves) {
    const std::string key = "sixteen bytes or more";
    auto connector = control(key);
    auto accept = acceptor(key);
    ASSERT_TRUE(run(connector, accept).ok());
    EXPECT_TRUE(accept.result().proven);
}

TEST_F(HandshakeTest, KeysMustMatch) {
    for (const auto& [ours, theirs] :
         {std::pair("one key of 16 bytes", "another of 16 bytes"),
          std::pair("one key of 16 bytes", ""), std::pair("", "another of 16 bytes")}) {
        auto connector = control(ours);
        auto accept = acceptor(theirs);
        EXPECT_EQ(run(connector, accept).code(), ErrorCode::NOT_ALLOWED);
        EXPECT_FALSE(accept.done());
        EXPECT_FALSE(admission_.admitted);
    }
}

TEST_F(HandshakeTest, UnknownGrant) {
    auto connector = control({}, Key{1, 2, 3});
    auto accept = acceptor();
    EXPECT_EQ(run(connector, accept).code(), ErrorCode::NOT_ALLOWED);
}

TEST_F(HandshakeTest, GrantIdWithoutItsKey) {
    Connector connector(alice_, kBob, ConnectionKind::CONTROL, "guessed", grantId(kGrant), {});
    auto accept = acceptor();
    EXPECT_EQ(run(connector, accept).code(), ErrorCode::NOT_ALLOWED);
    EXPECT_FALSE(accept.done());
}

TEST_F(HandshakeTest, AnotherIncarnationAnswers) {
    bob_.self.incarnation = {99};
    auto connector = control();
    auto accept = acceptor();
    EXPECT_EQ(run(connector, accept).code(), ErrorCode::REMOTE_DISCONNECT);
    EXPECT_EQ(connector.refused()->code, RejectCode::WRONG_AGENT);
}

TEST_F(HandshakeTest, ResumeNeedsTheEarlierKey) {
    earlier_ = Earlier{{5, 10, 20}, {8}};
    admission_.kept = Earlier{{5, 30, 40}, {8}};
    {
        auto connector = control();
        auto accept = acceptor();
        ASSERT_TRUE(run(connector, accept).ok());
        EXPECT_TRUE(accept.result().resumed);
        EXPECT_TRUE(connector.result().resumed);
        EXPECT_EQ(accept.result().peerResume, (Resume{5, 10, 20}));
        EXPECT_EQ(connector.result().peerResume, (Resume{5, 30, 40}));
    }
    admission_.kept->key = {9};
    {
        auto connector = control();
        auto accept = acceptor();
        ASSERT_TRUE(run(connector, accept).ok());
        EXPECT_FALSE(accept.result().resumed);
        EXPECT_FALSE(connector.result().resumed);
    }
}

TEST_F(HandshakeTest, IncomingCheckAndAdmissionMayRefuse) {
    admission_.refusal = Reject{RejectCode::DUPLICATE, "mine goes first"};
    auto first = control();
    auto accept = acceptor();
    EXPECT_FALSE(run(first, accept).ok());
    EXPECT_EQ(first.refused()->code, RejectCode::DUPLICATE);
    admission_.refusal.reset();
    admission_.admission = Reject{RejectCode::NAME_TAKEN, "another alice is here"};
    auto second = control();
    auto accept_again = acceptor();
    EXPECT_EQ(run(second, accept_again).code(), ErrorCode::NOT_ALLOWED);
}

TEST_F(HandshakeTest, DataConnectionNeedsTheSession) {
    const base::Digest key{42};
    Connector without(alice_, kBob, ConnectionKind::DATA, base::asView(key), 0, {});
    auto accept = acceptor();
    EXPECT_FALSE(run(without, accept).ok());
    admission_.session = key;
    Connector with(alice_, kBob, ConnectionKind::DATA, base::asView(key), 0, {});
    auto accept_again = acceptor();
    EXPECT_TRUE(run(with, accept_again).ok());
    EXPECT_NE(with.result().key, key);
    admission_.session = base::Digest{43};
    Connector wrong(alice_, kBob, ConnectionKind::DATA, base::asView(key), 0, {});
    auto accept_third = acceptor();
    EXPECT_FALSE(run(wrong, accept_third).ok());
}

TEST_F(HandshakeTest, ReplayedAuthIsRefused) {
    auto connector = control();
    auto accept = acceptor();
    const Frame hello = parse(connector.start());
    const Frame challenge = parse(accept.onFrame(hello.type, hello.body).value());
    const Frame auth = parse(connector.onFrame(challenge.type, challenge.body).value());
    EXPECT_TRUE(accept.onFrame(auth.type, auth.body).ok());
    auto other = acceptor();  // draws another nonce
    ASSERT_TRUE(other.onFrame(hello.type, hello.body).ok());
    EXPECT_FALSE(other.onFrame(auth.type, auth.body).ok());
}

TEST_F(HandshakeTest, FramesOutOfOrder) {
    auto accept = acceptor();
    EXPECT_FALSE(accept.onFrame(FrameType::AUTH, "").ok());
    auto connector = control();
    connector.start();
    EXPECT_FALSE(connector.onFrame(FrameType::READY, "").ok());
}

}  // namespace
}  // namespace nixl::peer
