// 20,000 schedules hold every invariant, and each planted mistake is found.
#include "testing/sim/sim.h"

#include <gtest/gtest.h>

namespace nixl::sim {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSchedules = 1000;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr uint64_t kSchedules = 1000;
#else
constexpr uint64_t kSchedules = 20'000;
#endif
#else
constexpr uint64_t kSchedules = 20'000;
#endif

TEST(Simulator, EverySchedule) {
    uint64_t notifications = 0;
    uint64_t transfers = 0;
    for (uint64_t seed = 1; seed <= kSchedules; ++seed) {
        const Outcome outcome = runSchedule(seed, Bug::NONE);
        ASSERT_TRUE(outcome.good) << "seed " << seed << ": " << outcome.what << "; replay with "
                                  << "./dev sim --seed " << seed;
        notifications += outcome.notifications;
        transfers += outcome.transfers;
    }
    EXPECT_GT(notifications, kSchedules);
    EXPECT_GT(transfers, kSchedules);
}

class PlantedBug : public testing::TestWithParam<Bug> {};

TEST_P(PlantedBug, IsFound) {
    for (uint64_t seed = 1; seed <= 2000; ++seed) {
        if (!runSchedule(seed, GetParam()).good) {
            return;
        }
    }
    FAIL() << "2000 schedules did not find it";
}

INSTANTIATE_TEST_SUITE_P(All,
                         PlantedBug,
                         testing::Values(Bug::EARLY_ACK,
                                         Bug::WRONG_RESUME,
                                         Bug::NO_FENCE,
                                         Bug::MARK_ORDER,
                                         Bug::EARLY_NOTIFY,
                                         Bug::HELP_ORDER,
                                         Bug::EARLY_UNMAP,
                                         Bug::LOST_OPEN,
                                         Bug::EARLY_RELEASE),
                         [](const auto& info) {
                             return "bug" + std::to_string(static_cast<int>(info.param));
                         });

}  // namespace
}  // namespace nixl::sim
