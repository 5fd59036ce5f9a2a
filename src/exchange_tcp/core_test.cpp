// Whose word counts about an agent, and how much is held for others.
#include "exchange_tcp/core.h"

#include <gtest/gtest.h>

namespace nixl::exchange_tcp {
namespace {

using exchange::Known;
using exchange::LocalAgent;
using exchange::Snapshot;

// Knows whoever it is told of; a blob is "grant" or anything else.
class FakeAgent final : public LocalAgent {
  public:
    const peer::Identity& self() const override { return self_; }
    uint64_t version() const override { return 1; }
    Result<Snapshot> snapshot(uint64_t /*since*/) override { return Snapshot{}; }
    std::optional<Known> known(const std::string& name) const override {
        const auto found = peers.find(name);
        return found == peers.end() ? std::nullopt : std::optional(Known{found->second, 1});
    }
    Result<Taken> take(std::string_view blob,
                       const peer::Identity& from,
                       bool needs_grant) override {
        if (needs_grant && blob != "grant") {
            return Status::notAllowed("not the grant");
        }
        peers[from.name] = from;
        ++taken;
        return Taken::NOW;
    }
    void drop(const peer::Identity& who) override { peers.erase(who.name); }

    std::map<std::string, peer::Identity> peers;
    int taken = 0;

  private:
    peer::Identity self_{"self", {}};
};

class OwnersTest : public testing::Test {
  protected:
    ErrorCode take(const Speaker& speaker, std::string_view blob = "blob") {
        stale_ = 0;
        return owners_.take(speaker, blob, stale_).status().code();
    }

    FakeAgent agent_;
    Owners owners_{agent_};
    uint64_t stale_ = 0;
    const peer::Identity first_{"a", {1}};
    const peer::Identity second_{"a", {2}};
};

TEST_F(OwnersTest, TheConnectionItCameOverMayReplaceAndDropIt) {
    const Speaker one{first_, 1, false, false};
    EXPECT_EQ(take(one), ErrorCode::OK);
    EXPECT_TRUE(owners_.owns(1));
    EXPECT_EQ(take(one), ErrorCode::OK);
    EXPECT_TRUE(owners_.update(one, "more").ok());
    EXPECT_EQ(agent_.taken, 3);
    const Speaker other{first_, 2, false, false};
    EXPECT_EQ(take(other), ErrorCode::NOT_ALLOWED);
    EXPECT_TRUE(owners_.update(other, "more").ok());
    EXPECT_EQ(agent_.taken, 3) << "a change over another connection is passed over";
    EXPECT_EQ(owners_.drop(other).code(), ErrorCode::NOT_ALLOWED);
    EXPECT_TRUE(owners_.drop(one).ok());
    EXPECT_TRUE(agent_.peers.empty());
    EXPECT_FALSE(owners_.owns(1));
    EXPECT_EQ(owners_.update(one, "more").status().code(), ErrorCode::NOT_FOUND);
    EXPECT_TRUE(owners_.drop(one).ok()) << "who is not known is forgotten already";
}

TEST_F(OwnersTest, ANamesakeWaitsForItsEnd) {
    EXPECT_EQ(take({first_, 1, false, false}), ErrorCode::OK);
    EXPECT_EQ(take({second_, 2, false, false}), ErrorCode::NOT_ALLOWED);
    owners_.ended(1);
    EXPECT_EQ(owners_.drop({first_, 3, false, false}).code(), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(take({second_, 2, false, false}), ErrorCode::OK);
    EXPECT_EQ(agent_.peers.at("a"), second_);
}

TEST_F(OwnersTest, TheKeyIsAlwaysEnough) {
    agent_.peers["a"] = first_;  // by the application
    EXPECT_EQ(take({second_, 1, true, false}), ErrorCode::OK);
    EXPECT_EQ(take({first_, 2, true, false}), ErrorCode::OK);
    EXPECT_TRUE(owners_.update({first_, 3, true, false}, "more").ok());
    EXPECT_EQ(agent_.taken, 3);
    EXPECT_EQ(owners_.drop({second_, 4, true, false}).code(), ErrorCode::NOT_ALLOWED)
        << "but for itself alone";
    EXPECT_TRUE(owners_.drop({first_, 4, true, false}).ok());
}

TEST_F(OwnersTest, WhatTheApplicationAddedNeedsItsGrant) {
    agent_.peers["a"] = first_;
    EXPECT_EQ(take({first_, 1, false, false}), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(take({second_, 1, false, false}, "grant"), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(take({first_, 1, false, false}, "grant"), ErrorCode::OK);
    EXPECT_TRUE(owners_.owns(1));
    owners_.forget("a");  // it adds it again
    EXPECT_EQ(owners_.drop({first_, 1, false, false}).code(), ErrorCode::NOT_ALLOWED);
}

TEST_F(OwnersTest, WhatWasFetchedIsFetchedAgain) {
    EXPECT_EQ(take({first_, 1, false, true}), ErrorCode::OK);
    EXPECT_EQ(take({first_, 2, false, false}), ErrorCode::OK);
    EXPECT_EQ(stale_, 1U);
    EXPECT_EQ(agent_.taken, 1);
    EXPECT_EQ(take({second_, 2, false, false}), ErrorCode::NOT_ALLOWED);
    EXPECT_EQ(take({second_, 3, false, true}), ErrorCode::OK) << "the application asked for it";
    owners_.ended(1);
    EXPECT_TRUE(owners_.owns(3)) << "the end of an earlier connection changes nothing";
}

TEST(BudgetTest, LargeMessagesShareIt) {
    ExchangeBudget budget;
    EXPECT_TRUE(budget.reserve(ExchangeBudget::kMaxBytes - 10));
    EXPECT_FALSE(budget.reserve(11));
    EXPECT_TRUE(budget.reserve(10));
    budget.release(ExchangeBudget::kMaxBytes);
    EXPECT_TRUE(budget.reserve(ExchangeBudget::kMaxBytes));
    EXPECT_GE(ExchangeBudget::idleConnections(), 64U);
}

}  // namespace
}  // namespace nixl::exchange_tcp
