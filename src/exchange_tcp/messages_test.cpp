// The messages of an exchange: what is written is read again; what is cut or changed is refused.
#include "exchange_tcp/messages.h"

#include <gtest/gtest.h>

namespace nixl::exchange_tcp {
namespace {

std::string bodyOf(const std::string& frame, MessageType type) {
    const auto header = readHeader(frame);
    EXPECT_TRUE(header.ok());
    EXPECT_EQ(header.value().type, type);
    EXPECT_EQ(header.value().length, frame.size() - kHeader);
    return frame.substr(kHeader);
}

// Every body that is one byte shorter or longer than the right one.
template <typename Message>
void expectExact(const std::string& body) {
    EXPECT_TRUE(Message::decode(body).ok());
    for (size_t size = 0; size < body.size(); ++size) {
        EXPECT_FALSE(Message::decode(body.substr(0, size)).ok()) << size;
    }
    EXPECT_FALSE(Message::decode(body + "x").ok());
}

TEST(MessagesTest, Fetch) {
    Fetch fetch;
    fetch.request = 300;
    fetch.follow = true;
    fetch.known = {9, 8};
    fetch.version = 77;
    const std::string body = bodyOf(fetch.encode(), MessageType::FETCH);
    const auto read = Fetch::decode(body);
    ASSERT_TRUE(read.ok());
    EXPECT_EQ(read.value().request, 300U);
    EXPECT_TRUE(read.value().follow);
    EXPECT_EQ(read.value().known, (peer::Key{9, 8}));
    EXPECT_EQ(read.value().version, 77U);
    expectExact<Fetch>(body);
    fetch.request = 0;
    EXPECT_FALSE(Fetch::decode(bodyOf(fetch.encode(), MessageType::FETCH)).ok());
    std::string flags = body;
    flags[2] = 3;
    EXPECT_FALSE(Fetch::decode(flags).ok());
}

TEST(MessagesTest, Load) {
    const std::string frame = Load::encodeHead(0, 4) + "blob";
    const auto read = Load::decode(bodyOf(frame, MessageType::LOAD));
    ASSERT_TRUE(read.ok());
    EXPECT_EQ(read.value().request, 0U);
    EXPECT_FALSE(Load::decode(std::string(1, '\1')).ok()) << "no metadata";
    EXPECT_FALSE(Load::decode("").ok());
}

TEST(MessagesTest, Invalidate) {
    expectExact<Invalidate>(bodyOf(Invalidate{5}.encode(), MessageType::INVALIDATE));
    EXPECT_FALSE(Invalidate::decode(std::string(1, '\0')).ok());
}

TEST(MessagesTest, Answer) {
    const std::string good = Answer::encodeHead(4, {}, 4) + "blob";
    const std::string body = bodyOf(good, MessageType::ANSWER);
    const auto read = Answer::decode(body);
    ASSERT_TRUE(read.ok());
    EXPECT_TRUE(read.value().status.ok());
    EXPECT_EQ(read.value().metadata, "blob");

    const Status why = Status::notAllowed("not\nyou");
    const std::string failed = bodyOf(Answer::encodeHead(4, why, 0), MessageType::ANSWER);
    const auto refused = Answer::decode(failed);
    ASSERT_TRUE(refused.ok());
    EXPECT_EQ(refused.value().status.code(), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(refused.value().status.message(), "not you");
    std::string unknown = failed;
    unknown[1] = 99;
    EXPECT_FALSE(Answer::decode(unknown).ok());
}

TEST(MessagesTest, ALongReasonIsCutBetweenCharacters) {
    std::string text(511, 'x');
    for (int i = 0; i < 20; ++i) {
        text += "\xC3\xA9";  // é
    }
    const std::string frame = Answer::encodeHead(1, Status::backend(text), 0);
    const auto read = Answer::decode(bodyOf(frame, MessageType::ANSWER));
    ASSERT_TRUE(read.ok());
    EXPECT_EQ(read.value().status.message(), std::string(511, 'x'));
}

TEST(MessagesTest, HeadersThatPromiseTooMuch) {
    const auto header = [](uint32_t length, uint8_t type, uint8_t flags = 0) {
        base::ByteWriter out;
        out.fixed(length);
        out.fixed(type);
        out.fixed(flags);
        out.fixed<uint16_t>(0);
        return out.take();
    };
    EXPECT_TRUE(readHeader(header(kMaxMetadata + kMaxExtra, 49)).ok());
    EXPECT_FALSE(readHeader(header(kMaxMetadata + kMaxExtra + 1, 49)).ok());
    EXPECT_FALSE(readHeader(header(kMaxSmallMessage + 1, 48)).ok());
    EXPECT_FALSE(readHeader(header(0, 47)).ok());
    EXPECT_FALSE(readHeader(header(0, 53)).ok());
    EXPECT_FALSE(readHeader(header(0, 52, 1)).ok());
    EXPECT_TRUE(readHeader(encodePart()).ok());
}

}  // namespace
}  // namespace nixl::exchange_tcp
