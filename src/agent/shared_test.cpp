// Grants of partial blobs as the agent keeps them.
#include "agent/shared.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/log.h"
#include "session/wire.h"

namespace nixl::agent {
namespace {

TEST(AgentShared, PartialGrantsOpenTheirRegionsOnly) {
    AgentShared shared({.name = "bob"}, {1});
    const peer::Key whole = shared.grant();
    const peer::Key one = shared.partialGrant({3, 2, 3});
    EXPECT_NE(one, whole);
    EXPECT_EQ(shared.partialGrant({2, 3}), one) << "the same for the same regions";
    EXPECT_NE(shared.partialGrant({2}), one);
    const auto reach = [&](const peer::Key& key, uint64_t region) {
        return shared.region(peer::grantId(key), region, 0, OpType::READ).status().code();
    };
    EXPECT_EQ(reach(one, 4), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(reach(shared.partialGrant({}), 2), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(reach({9}, 2), ErrorCode::NOT_ALLOWED);
    // Allowed, but there is no such region.
    EXPECT_EQ(reach(one, 3), ErrorCode::NOT_FOUND);
    EXPECT_EQ(reach(whole, 4), ErrorCode::NOT_FOUND);
}

// An agent that gives away partial blobs of ever new regions does not grow for ever.
TEST(AgentShared, GrantsOfRegionsThatAreGoneAreForgotten) {
    AgentShared shared({.name = "bob"}, {1});
    const peer::Key none = shared.partialGrant({});
    const peer::Key first = shared.partialGrant({1});
    peer::Key last{};
    for (uint64_t region = 2; region < 10'000; ++region) {
        last = shared.partialGrant({region});
    }
    EXPECT_FALSE(shared.grantKey(peer::grantId(first)));
    EXPECT_TRUE(shared.grantKey(peer::grantId(last)));
    EXPECT_TRUE(shared.grantKey(peer::grantId(none))) << "it opens sessions";
    EXPECT_TRUE(shared.grantKey(peer::grantId(shared.grant())));
}

// Names that come and go do not pile up; who is there can be answered, and the latest of the
// others.
TEST(AgentShared, SendersThatAreGoneAreForgotten) {
    AgentShared shared({.name = "bob"}, {1});
    const peer::Identity friendly{"friend", {9}};
    shared.deliver(friendly, "hello", nullptr);
    const auto alive = [&](const peer::Identity& who) { return who == friendly; };
    for (size_t i = 0; i < 5 * AgentShared::kManySenders; ++i) {
        shared.deliver({"sender " + std::to_string(i), {2}}, "x", nullptr);
        shared.takeNotifications();
        shared.forgetSenders(alive);
        ASSERT_LE(shared.senders(), AgentShared::kManySenders + 8);
    }
    EXPECT_TRUE(shared.lastSender("friend").has_value());
    EXPECT_TRUE(shared.lastSender("sender " + std::to_string(5 * AgentShared::kManySenders - 1)));
    EXPECT_FALSE(shared.lastSender("sender 0"));
}

// As many as there are: nobody who is there is forgotten.
TEST(AgentShared, SendersThatLiveAreKept) {
    AgentShared shared({.name = "bob"}, {1});
    size_t asked = 0;
    for (size_t i = 0; i < 3 * AgentShared::kManySenders; ++i) {
        shared.deliver({std::to_string(i), {2}}, "x", nullptr);
        shared.forgetSenders([&](const peer::Identity&) { return ++asked > 0; });
    }
    EXPECT_EQ(shared.senders(), 3 * AgentShared::kManySenders);
    EXPECT_LT(asked, 10 * AgentShared::kManySenders) << "not at each message";
}

std::vector<std::string>& logged() {
    static std::vector<std::string> lines;
    return lines;
}

TEST(AgentShared, MessagesOfLanesReachWhoListensAndNobodyElse) {
    AgentShared shared({"bob", {1}}, {});
    std::vector<std::string> from;
    std::vector<std::string> heard;
    shared.listenToLane("near", [&](const PlanPeer& who, std::string_view message) {
        from.emplace_back(who.self ? "self" : who.name);
        heard.emplace_back(message);
    });
    const std::string binary("a\0b", 3);
    shared.deliver({"alice", {2}}, markedForLane("near", binary), nullptr);
    shared.deliver({"bob", {1}}, markedForLane("near", "me"), nullptr);
    shared.deliver({"alice", {2}}, markedForLane("far", "lost"), nullptr);
    std::string endless(kLaneMark);
    endless.append("no end");
    shared.deliver({"alice", {2}}, endless, nullptr);
    EXPECT_FALSE(shared.hasNotifications());
    EXPECT_EQ(from, (std::vector<std::string>{"alice", "self"}));
    EXPECT_EQ(heard, (std::vector<std::string>{binary, "me"}));
    shared.listenToLane("near", nullptr);
    shared.deliver({"alice", {2}}, markedForLane("near", "late"), nullptr);
    EXPECT_EQ(heard.size(), 2U);
}

TEST(AgentShared, UndeliveredNotificationsAreToldOnce) {
    AgentShared shared({.name = "bob"}, {1});
    base::setLogSink([](LogLevel, std::string_view line) { logged().emplace_back(line); });
    const Status gone = Status::disconnected("it is gone");
    EXPECT_TRUE(shared.addUndelivered("alice", gone));
    for (int i = 1; i < 20'000; ++i) {
        EXPECT_FALSE(shared.addUndelivered("alice", gone));
    }
    EXPECT_FALSE(shared.addUndelivered("carol", gone));
    shared.reportUndelivered();
    shared.reportUndelivered();
    base::setLogSink(nullptr);
    EXPECT_EQ(logged(), (std::vector<std::string>{
                            "20000 notifications to agent \"alice\" were not delivered: it is gone",
                            "a notification to agent \"carol\" was not delivered: it is gone"}));
    EXPECT_EQ(shared.failures.load(), 20'001U);
    EXPECT_TRUE(shared.addUndelivered("alice", gone)) << "told anew";
}

}  // namespace
}  // namespace nixl::agent
