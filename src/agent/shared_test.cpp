// Grants of partial blobs as the agent keeps them.
#include "agent/shared.h"

#include <gtest/gtest.h>

#include "peer/wire.h"

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

}  // namespace
}  // namespace nixl::agent
