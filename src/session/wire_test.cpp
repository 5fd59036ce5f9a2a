// Frames: what is encoded is decoded, and nothing else is accepted.
#include "session/wire.h"

#include <gtest/gtest.h>

namespace nixl::peer {
namespace {

Hello someHello() {
    Hello hello;
    hello.from = {"alice", {1, 2, 3}};
    hello.to = {9, 8, 7};
    hello.nonce = {5};
    hello.grant = 77;
    hello.cookieAt = 0x1234;
    return hello;
}

template <typename T>
std::string bodyOf(const T& content) {
    base::ByteWriter out;
    content.encode(out);
    return out.take();
}

// Every strict prefix and every extension must be refused.
template <typename T>
void expectExact(const T& content) {
    const std::string body = bodyOf(content);
    EXPECT_TRUE(T::decode(body).ok());
    for (size_t cut = 0; cut < body.size(); ++cut) {
        EXPECT_FALSE(T::decode(std::string_view(body).substr(0, cut)).ok()) << cut;
    }
    EXPECT_FALSE(T::decode(body + "x").ok());
}

TEST(Wire, HandshakeFramesAreExact) {
    expectExact(someHello());
    Challenge challenge;
    challenge.from = {"bob", {4}};
    expectExact(challenge);
    expectExact(Auth{});
    expectExact(Ready{{3, 2, 1}});
    expectExact(Reject{RejectCode::NAME_TAKEN, "because"});
    expectExact(Ack{300, 70'000});
    expectExact(GrantProof{42, {}});
}

TEST(Wire, HelloKeepsItsFields) {
    const auto hello = Hello::decode(bodyOf(someHello()));
    ASSERT_TRUE(hello.ok());
    EXPECT_EQ(hello.value().from.name, "alice");
    EXPECT_EQ(hello.value().to, (Key{9, 8, 7}));
    EXPECT_EQ(hello.value().grant, 77U);
    EXPECT_EQ(hello.value().cookieAt, 0x1234U);
}

TEST(Wire, NamesAreBounded) {
    Hello hello = someHello();
    hello.from.name = std::string(kMaxName + 1, 'x');
    EXPECT_FALSE(Hello::decode(bodyOf(hello)).ok());
    hello.from.name.clear();
    EXPECT_FALSE(Hello::decode(bodyOf(hello)).ok());
}

TEST(Wire, ReasonsArePrintable) {
    const auto reject = Reject::decode(bodyOf(Reject{RejectCode::LIMIT, "a\x1b[2Jb\n"}));
    ASSERT_TRUE(reject.ok());
    EXPECT_EQ(reject.value().reason, "a?[2Jb?");
}

TEST(Wire, HeadersAreChecked) {
    base::ByteWriter out;
    endFrame(out, beginFrame(out, FrameType::PING));
    const std::string good = out.bytes();
    ASSERT_TRUE(readHeader(good).ok());
    std::string bad = good;
    bad[4] = 99;
    EXPECT_FALSE(readHeader(bad).ok()) << "unknown type";
    bad = good;
    bad[5] = 1;
    EXPECT_FALSE(readHeader(bad).ok()) << "flags";
    bad = good;
    bad[7] = 1;
    EXPECT_FALSE(readHeader(bad).ok()) << "reserved";
    bad = good;
    bad[3] = 1;
    EXPECT_FALSE(readHeader(bad).ok()) << "length";
    EXPECT_FALSE(readHeader(good.substr(0, 7)).ok());
}

TEST(Wire, FramesAreCutFromTheStartOfTheBytes) {
    base::ByteWriter out;
    const size_t begin = beginFrame(out, FrameType::PONG);
    out.raw("12345678");
    endFrame(out, begin);
    const std::string bytes = out.bytes() + "more";
    const auto whole = nextFrame(bytes);
    ASSERT_TRUE(whole.ok() && whole.value().whole);
    EXPECT_EQ(whole.value().header.type, FrameType::PONG);
    EXPECT_EQ(whole.value().body, "12345678");
    EXPECT_EQ(whole.value().size, kFrameHeader + 8);
    // The size is known as soon as the header is there.
    const auto some = nextFrame(std::string_view(bytes).substr(0, kFrameHeader + 7));
    ASSERT_TRUE(some.ok());
    EXPECT_FALSE(some.value().whole);
    EXPECT_EQ(some.value().size, kFrameHeader + 8);
    const auto none = nextFrame(std::string_view(bytes).substr(0, kFrameHeader - 1));
    ASSERT_TRUE(none.ok());
    EXPECT_EQ(none.value().size, 0U);
    EXPECT_FALSE(nextFrame("not a frame at all").ok());
}

TEST(Wire, PiecesStayWithinTheirNotification) {
    const std::string bytes(100, 'x');
    EXPECT_TRUE(NotificationPiece::decode(bodyOf(NotificationPiece{1, 100, 0, bytes})).ok());
    EXPECT_TRUE(NotificationPiece::decode(bodyOf(NotificationPiece{1, 0, 0, ""})).ok());
    EXPECT_FALSE(NotificationPiece::decode(bodyOf(NotificationPiece{1, 99, 0, bytes})).ok());
    EXPECT_FALSE(NotificationPiece::decode(bodyOf(NotificationPiece{1, 100, 1, bytes})).ok());
    EXPECT_FALSE(NotificationPiece::decode(bodyOf(NotificationPiece{1, 100, 0, ""})).ok());
    EXPECT_FALSE(
        NotificationPiece::decode(bodyOf(NotificationPiece{1, kMaxNotification + 1, 0, bytes}))
            .ok());
}

TEST(Wire, GrantIdsDifferFromKeys) {
    const Key a{1};
    const Key b{2};
    EXPECT_NE(grantId(a), grantId(b));
    EXPECT_EQ(grantId(a), grantId(a));
    EXPECT_NE(grantProof(a, {}), grantProof(b, {}));
    EXPECT_NE(grantProof(a, {}), grantProof(a, {1}));
}

}  // namespace
}  // namespace nixl::peer
