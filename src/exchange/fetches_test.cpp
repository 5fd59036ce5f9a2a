// Fetches: what is under way, what failed, and that each end is told once.
#include "exchange/fetches.h"

#include <optional>

#include <gtest/gtest.h>

namespace nixl::exchange {
namespace {

TEST(FetchesTest, EachEndIsToldOnce) {
    Fetches fetches;
    int told = 0;
    const auto end = fetches.begin("b", [&](const Status& status) {
        EXPECT_TRUE(status.ok());
        ++told;
    });
    EXPECT_TRUE(fetches.underWay("b"));
    EXPECT_FALSE(fetches.underWay("c"));
    end({});
    end(Status::timeout("too late"));
    EXPECT_EQ(told, 1);
    EXPECT_FALSE(fetches.underWay("b"));
    EXPECT_TRUE(fetches.failure("b").ok());
}

TEST(FetchesTest, AFailureIsToldUntilTheNextFetchBegins) {
    Fetches fetches;
    fetches.begin("b", nullptr)(Status::disconnected("cannot connect"));
    EXPECT_EQ(fetches.failure("b").message(), "cannot connect");
    EXPECT_EQ(fetches.failure("b").message(), "cannot connect");
    const auto first = fetches.begin("b", nullptr);
    const auto second = fetches.begin("b", nullptr);
    EXPECT_TRUE(fetches.failure("b").ok());
    first(Status::disconnected("first"));
    EXPECT_TRUE(fetches.failure("b").ok()) << "one is still under way";
    second({});
    EXPECT_TRUE(fetches.failure("b").ok()) << "the last one went well";
    fetches.begin("b", nullptr)(Status::disconnected("again"));
    fetches.forget("b");
    EXPECT_TRUE(fetches.failure("b").ok());
}

TEST(FetchesTest, TheOldestFailuresAreForgotten) {
    Fetches fetches;
    for (size_t i = 0; i <= Fetches::kMaxFailures; ++i) {
        fetches.begin(std::to_string(i), nullptr)(Status::disconnected("gone"));
    }
    EXPECT_TRUE(fetches.failure("0").ok());
    EXPECT_FALSE(fetches.failure("1").ok());
    EXPECT_FALSE(fetches.failure(std::to_string(Fetches::kMaxFailures)).ok());
}

TEST(FetchesTest, TheEndOfTheAgentEndsAll) {
    std::optional<Status> told;
    Fetches::Done late;
    {
        Fetches fetches;
        late = fetches.begin("b", [&](const Status& status) { told = status; });
        fetches.endAll(Status::canceled("closed"));
        EXPECT_EQ(told->code(), ErrorCode::CANCELED);
        told.reset();
        fetches.begin("c", [&](const Status& status) { told = status; });
        EXPECT_EQ(told->code(), ErrorCode::CANCELED);
    }
    late({});
}

}  // namespace
}  // namespace nixl::exchange
