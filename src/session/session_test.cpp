// The session: notifications in order and once, also over lost connections; credits, heartbeats,
// and what a peer must not do.
#include "session/session.h"

#include <gtest/gtest.h>

namespace nixl::peer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const SessionLimits kSmall{milliseconds(1000), 4096, 8192};

struct End {
    explicit End(const SessionLimits& limits = {}) : session("peer", limits) {}
    Session session;
    std::vector<std::string> delivered;
    std::vector<uint64_t> costs;
    std::vector<std::pair<uint64_t, ErrorCode>> sent;
    std::vector<uint64_t> unconfirmed;  // those of `sent` that say so
    bool bye = false;

    void collect() {
        for (auto& event : session.takeEvents()) {
            switch (event.kind) {
                case Session::Event::Kind::SENT:
                    sent.emplace_back(event.token, event.status.code());
                    if (event.status.message().find("remote_unconfirmed") != std::string::npos) {
                        unconfirmed.push_back(event.token);
                    }
                    break;
                case Session::Event::Kind::DELIVER:
                    delivered.push_back(std::move(event.text));
                    session.delivered(session.epoch(), event.sequence);
                    costs.push_back(event.token);
                    break;
                case Session::Event::Kind::BYE:
                    bye = true;
                    break;
                case Session::Event::Kind::FRAME:
                    break;
            }
        }
    }
};

class SessionTest : public testing::Test {
  protected:
    explicit SessionTest(const SessionLimits& limits = {}) : a_(limits), b_(limits) {}

    // Moves bytes until neither side has any.
    void exchange(size_t cut = SIZE_MAX) {
        for (bool moved = true; moved;) {
            moved = move(a_, b_, cut);
            moved = move(b_, a_, cut) || moved;
        }
    }
    bool move(End& from, End& to, size_t cut) {
        std::string bytes;
        from.session.produce(bytes, 1 << 20);
        for (std::string_view rest = bytes; !rest.empty();) {
            const auto part = rest.substr(0, cut);
            EXPECT_TRUE(to.session.receive(part, now_).ok());
            rest.remove_prefix(part.size());
        }
        to.collect();
        from.collect();
        return !bytes.empty();
    }
    void attachFresh(uint64_t epoch = 5) {
        a_.session.attach(now_, {epoch, 0, 0}, false);
        b_.session.attach(now_, {epoch, 0, 0}, false);
    }
    // What two handshakes would do.
    void reattach() {
        const Resume a = a_.session.resume();
        const Resume b = b_.session.resume();
        a_.session.attach(now_, b, true);
        b_.session.attach(now_, a, true);
    }

    Time now_ = Time{} + seconds(100);
    End a_;
    End b_;
};

TEST_F(SessionTest, InOrderInAnyPieces) {
    attachFresh();
    std::vector<std::string> wanted;
    for (const size_t size : {0UL, 1UL, 65'535UL, 65'536UL, 65'537UL, 1UL << 20, 3UL}) {
        wanted.push_back(std::string(size, static_cast<char>('a' + wanted.size())));
        ASSERT_TRUE(a_.session.send(wanted.back(), wanted.size()).ok());
    }
    exchange(1000);
    EXPECT_EQ(b_.delivered, wanted);
    ASSERT_EQ(a_.sent.size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
        EXPECT_EQ(a_.sent[i], std::pair(static_cast<uint64_t>(i + 1), ErrorCode::OK));
    }
    EXPECT_EQ(a_.session.queuedBytes(), 0U);
    EXPECT_EQ(b_.session.bufferedInput(), 0U);
}

TEST_F(SessionTest, TooLongIsRefused) {
    EXPECT_EQ(a_.session.send(std::string(kMaxNotification + 1, 'x'), 1).code(),
              ErrorCode::INVALID_PARAM);
    EXPECT_EQ(a_.session.waiting(), 0U);
}

TEST_F(SessionTest, SurvivesALostConnectionOnce) {
    attachFresh();
    ASSERT_TRUE(a_.session.send("one", 1).ok());
    ASSERT_TRUE(a_.session.send(std::string(200'000, 'x'), 2).ok());
    ASSERT_TRUE(a_.session.send("three", 3).ok());
    // Two pieces of the second arrive; the acknowledgement of the first is lost.
    std::string bytes;
    a_.session.produce(bytes, 130'000);
    ASSERT_TRUE(b_.session.receive(bytes, now_).ok());
    b_.collect();
    a_.session.detach();
    b_.session.detach();
    EXPECT_EQ(b_.delivered.size(), 1U);
    EXPECT_TRUE(a_.sent.empty());
    reattach();
    exchange();
    ASSERT_EQ(b_.delivered.size(), 3U);
    EXPECT_EQ(b_.delivered[1].size(), 200'000U);
    EXPECT_EQ(b_.delivered[2], "three");
    EXPECT_EQ(a_.sent.size(), 3U);
}

TEST_F(SessionTest, PeerThatForgotFailsWhatWasBegun) {
    attachFresh();
    ASSERT_TRUE(a_.session.send("begun", 1).ok());
    std::string bytes;
    a_.session.produce(bytes, 10'000);
    a_.session.detach();
    ASSERT_TRUE(a_.session.send("fresh", 2).ok());
    a_.session.attach(now_, {6, 0, 0}, false);
    a_.collect();
    ASSERT_EQ(a_.sent.size(), 1U);
    EXPECT_EQ(a_.sent[0], std::pair(uint64_t{1}, ErrorCode::REMOTE_DISCONNECT));
    EXPECT_EQ(a_.unconfirmed, std::vector<uint64_t>{1});
    b_.session.attach(now_, {6, 0, 0}, false);
    exchange();
    EXPECT_EQ(b_.delivered, std::vector<std::string>{"fresh"});
}

class SmallSessionTest : public SessionTest {
  protected:
    SmallSessionTest() : SessionTest(kSmall) {}
};

TEST_F(SmallSessionTest, CreditsHoldTheSender) {
    attachFresh();
    for (uint64_t i = 1; i <= 6; ++i) {
        ASSERT_TRUE(a_.session.send(std::string(1000, 'x'), i).ok());
    }
    exchange();
    EXPECT_EQ(b_.delivered.size(), 3U) << "3 of 1064 bytes fit into 4096";
    b_.session.consumed(b_.session.epoch() + 1, 4000);
    exchange();
    EXPECT_EQ(b_.delivered.size(), 3U) << "credit of another epoch does not count";
    b_.session.consumed(b_.session.epoch(), 2 * b_.costs[0]);
    exchange();
    EXPECT_EQ(b_.delivered.size(), 5U);
    b_.session.consumed(b_.session.epoch(), b_.costs[0]);
    exchange();
    EXPECT_EQ(b_.delivered.size(), 6U);
}

// What has not begun can be taken back, and its room with it; nothing else can.
TEST_F(SmallSessionTest, WithdrawnIsNeverSent) {
    ASSERT_TRUE(a_.session.send("before", 1).ok());
    ASSERT_TRUE(a_.session.send(std::string(3000, 'x'), 2).ok());
    EXPECT_TRUE(a_.session.withdraw(2));
    EXPECT_FALSE(a_.session.withdraw(2));
    EXPECT_FALSE(a_.session.withdraw(99));
    attachFresh();
    std::string bytes;
    a_.session.produce(bytes, 1 << 20);
    EXPECT_FALSE(a_.session.withdraw(1));  // on its way
    ASSERT_TRUE(b_.session.receive(bytes, now_).ok());
    ASSERT_TRUE(a_.session.send(std::string(3000, 'y'), 3).ok());
    ASSERT_TRUE(a_.session.send(std::string(3000, 'z'), 4).ok());  // waits for credit
    exchange();
    EXPECT_TRUE(a_.session.withdraw(4));
    ASSERT_TRUE(a_.session.send("after", 5).ok());
    exchange();
    EXPECT_EQ(b_.delivered, (std::vector<std::string>{"before", std::string(3000, 'y'), "after"}));
    EXPECT_EQ(a_.sent, (std::vector<std::pair<uint64_t, ErrorCode>>{
                           {1, ErrorCode::OK}, {3, ErrorCode::OK}, {5, ErrorCode::OK}}));
    EXPECT_EQ(a_.session.queuedBytes(), 0U);
}

TEST_F(SmallSessionTest, QueueIsBounded) {
    size_t taken = 0;
    while (a_.session.send(std::string(1000, 'x'), taken).ok()) {
        ++taken;
    }
    EXPECT_EQ(taken, 7U);
    EXPECT_EQ(a_.session.send("x", 9).ok(), true) << "a small one still fits";
}

TEST_F(SmallSessionTest, WaitingForCreditEnds) {
    attachFresh();
    for (uint64_t i = 1; i <= 5; ++i) {
        ASSERT_TRUE(a_.session.send(std::string(1000, 'x'), i).ok());
    }
    exchange();
    Time next;
    ASSERT_TRUE(a_.session.tick(now_, next).ok());
    now_ += milliseconds(999);
    exchange();
    ASSERT_TRUE(a_.session.receive("", now_).ok());
    ASSERT_TRUE(a_.session.tick(now_, next).ok());
    a_.collect();
    EXPECT_EQ(a_.sent.size(), 3U);
    now_ += milliseconds(1);
    ASSERT_TRUE(a_.session.tick(now_, next).ok());
    a_.collect();
    ASSERT_EQ(a_.sent.size(), 5U);
    EXPECT_EQ(a_.sent[3], std::pair(uint64_t{4}, ErrorCode::TIMEOUT));
    EXPECT_EQ(a_.sent[4], std::pair(uint64_t{5}, ErrorCode::TIMEOUT));
}

TEST_F(SmallSessionTest, SenderBeyondItsCreditIsCutOff) {
    attachFresh();
    Session greedy("peer", {});
    greedy.attach(now_, {5, 0, 0}, false);
    for (uint64_t i = 0; i < 4; ++i) {
        ASSERT_TRUE(greedy.send(std::string(1000, 'x'), i).ok());
    }
    std::string bytes;
    greedy.produce(bytes, 1 << 20);
    EXPECT_FALSE(b_.session.receive(bytes, now_).ok());
}

TEST_F(SmallSessionTest, HeartbeatsOnlyWhenSilentAndLossInTime) {
    attachFresh();
    exchange();
    Time next;
    ASSERT_TRUE(a_.session.tick(now_, next).ok());
    EXPECT_FALSE(a_.session.wantsToSend());
    now_ += milliseconds(250);
    ASSERT_TRUE(a_.session.tick(now_, next).ok());
    EXPECT_TRUE(a_.session.wantsToSend());
    exchange();  // ping and pong
    now_ += milliseconds(999);
    EXPECT_TRUE(a_.session.tick(now_, next).ok());
    EXPECT_LE(next, now_ + milliseconds(1));
    now_ += milliseconds(1);
    EXPECT_EQ(a_.session.tick(now_, next).code(), ErrorCode::REMOTE_DISCONNECT);
}

TEST_F(SessionTest, UrgentFramesOvertakeNotifications) {
    attachFresh();
    exchange();
    ASSERT_TRUE(a_.session.send(std::string(1 << 20, 'x'), 1).ok());
    a_.session.sendFrame(FrameType::LANE_MESSAGE, "");
    std::string bytes;
    a_.session.produce(bytes, 1);
    ASSERT_GE(bytes.size(), kFrameHeader);
    EXPECT_EQ(readHeader(bytes).value().type, FrameType::LANE_MESSAGE);
}

TEST_F(SessionTest, FailEndsEverything) {
    attachFresh();
    ASSERT_TRUE(a_.session.send("a", 1).ok());
    std::string bytes;
    a_.session.produce(bytes, 10'000);
    ASSERT_TRUE(a_.session.send("b", 2).ok());
    a_.session.fail(Status::disconnected("gone"));
    a_.collect();
    EXPECT_EQ(a_.sent.size(), 2U);
    EXPECT_EQ(a_.unconfirmed, std::vector<uint64_t>{1}) << "what was sent may have arrived";
    EXPECT_EQ(a_.session.queuedBytes(), 0U);
    EXPECT_FALSE(a_.session.wantsToSend());
}

std::string frameOf(FrameType type, const auto& content) {
    base::ByteWriter out;
    const size_t begin = beginFrame(out, type);
    content.encode(out);
    endFrame(out, begin);
    return out.take();
}

TEST_F(SessionTest, ViolationsAreRefused) {
    const auto refused = [&](const std::string& bytes) {
        Session fresh("peer", {});
        fresh.attach(now_, {5, 0, 0}, false);
        return !fresh.receive(bytes, now_).ok();
    };
    EXPECT_FALSE(refused(frameOf(FrameType::NOTIFICATION, NotificationPiece{1, 2, 0, "xx"})));
    EXPECT_TRUE(refused(frameOf(FrameType::NOTIFICATION, NotificationPiece{2, 2, 0, "xx"})));
    EXPECT_FALSE(refused(frameOf(FrameType::NOTIFICATION, NotificationPiece{1, 2, 0, "xx"}) +
                         frameOf(FrameType::NOTIFICATION, NotificationPiece{1, 2, 0, "xx"})));
    EXPECT_TRUE(refused(frameOf(FrameType::NOTIFICATION, NotificationPiece{1, 3, 1, "xx"})));
    EXPECT_TRUE(refused(frameOf(FrameType::NOTIFICATION, NotificationPiece{1, 4, 0, "xx"}) +
                        frameOf(FrameType::NOTIFICATION, NotificationPiece{1, 5, 2, "xx"})));
    EXPECT_TRUE(refused(frameOf(FrameType::ACK, Ack{1, 0})));
    EXPECT_TRUE(refused(frameOf(FrameType::ACK, Ack{0, 1})));
    EXPECT_TRUE(refused(frameOf(FrameType::HELLO, Hello{})));
    EXPECT_TRUE(refused(frameOf(FrameType::WRITE, Ack{})));
    EXPECT_TRUE(refused(std::string(8, '\xff')));
}

TEST_F(SessionTest, PingFloodWithoutReadingEnds) {
    attachFresh();
    const std::string ping = frameOf(FrameType::PING, Ack{});
    Status status;
    for (int i = 0; i < 100'000 && status.ok(); ++i) {
        status = a_.session.receive(ping, now_);
    }
    EXPECT_FALSE(status.ok());
}

TEST_F(SessionTest, ByeIsReported) {
    attachFresh();
    base::ByteWriter body;
    Reject{RejectCode::CLOSING, "done"}.encode(body);
    a_.session.sendFrame(FrameType::BYE, body.bytes());
    exchange();
    EXPECT_TRUE(b_.bye);
}

}  // namespace
}  // namespace nixl::peer
