// Messages between lanes: the same afterwards, and damaged ones are none.
#include "messages.h"

#include <gtest/gtest.h>

namespace nixl::gpunetio {
namespace {

LinkMessage example() {
    LinkMessage message;
    message.kind = LinkMessage::ACCEPT;
    message.link = 0x1122334455667788;
    message.gpu = 7;
    message.queues.resize(2);
    message.queues[1].number = 0xabcdef;
    message.queues[1].lid = 0x1234;
    message.queues[1].gid[15] = 9;
    message.text = "why";
    return message;
}

TEST(Messages, AreTheSameAfterwards) {
    const auto read = decode(encode(example()));
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(read->kind, LinkMessage::ACCEPT);
    EXPECT_EQ(read->link, 0x1122334455667788U);
    EXPECT_EQ(read->gpu, 7U);
    ASSERT_EQ(read->queues.size(), 2U);
    EXPECT_EQ(read->queues[1].number, 0xabcdefU);
    EXPECT_EQ(read->queues[1].lid, 0x1234);
    EXPECT_EQ(read->queues[1].gid[15], 9);
    EXPECT_EQ(read->text, "why");
}

TEST(Messages, DamagedOnesAreNone) {
    LinkMessage message = example();
    message.text.clear();
    const std::string whole = encode(message);
    for (size_t size = 0; size < whole.size(); ++size) {
        EXPECT_FALSE(decode(std::string_view(whole).substr(0, size)).has_value()) << size;
    }
    std::string wrong = whole;
    wrong[0] = 9;
    EXPECT_FALSE(decode(wrong).has_value());
    message.queues.resize(kMostQueues + 1);
    EXPECT_FALSE(decode(encode(message)).has_value());
}

}  // namespace
}  // namespace nixl::gpunetio
