// How transfers are dealt out to workers.
#include <gtest/gtest.h>

#ifdef NIXL_UCX_LANE
#include <map>

#include "ucx_workers.h"

namespace nixl::ucx {
namespace {

constexpr uint64_t kPiece = 1000;

// Every byte of the plan: where it comes from and goes to.
std::map<uint64_t, std::pair<uint64_t, uint64_t>> bytesOf(std::span<const PlanRun> runs) {
    std::map<uint64_t, std::pair<uint64_t, uint64_t>> bytes;
    Segment segment;
    for (SegmentCursor cursor(runs); cursor.next(segment);) {
        EXPECT_LE(segment.size, kPiece);
        for (uint64_t i = 0; i < segment.size; ++i) {
            const bool fresh =
                bytes.insert({segment.planOffset + i, {segment.local + i, segment.remote + i}})
                    .second;
            EXPECT_TRUE(fresh) << segment.planOffset + i;
        }
    }
    return bytes;
}

PlanRun run(uint64_t offset, uint64_t size, uint64_t count) {
    PlanRun made;
    made.local = 10'000'000 + 3 * offset;
    made.remote = 90'000'000 - 5 * offset;
    made.size = size;
    made.localStride = 2 * size;
    made.remoteStride = uint64_t{0} - 3 * size;  // downwards
    made.count = count;
    made.planOffset = offset;
    return made;
}

TEST(DealRuns, EveryByteIsInOnePartAtItsPlace) {
    const std::vector<PlanRun> plan = {run(0, 1, 1), run(1, 700, 9), run(6301, 12'345, 3),
                                       run(43'336, 1000, 2)};
    const uint64_t bytes = 45'336;
    std::map<uint64_t, std::pair<uint64_t, uint64_t>> expected;
    Segment segment;
    for (SegmentCursor cursor(plan); cursor.next(segment);) {
        for (uint64_t i = 0; i < segment.size; ++i) {
            expected[segment.planOffset + i] = {segment.local + i, segment.remote + i};
        }
    }
    ASSERT_EQ(expected.size(), bytes);
    for (const size_t parts : {1U, 2U, 5U, 64U}) {
        std::map<uint64_t, std::pair<uint64_t, uint64_t>> all;
        const auto dealt = dealRuns(plan, bytes, parts, kPiece, 4000);
        EXPECT_LE(dealt.size(), std::min<size_t>(parts, bytes / 4000));
        for (const auto& part : dealt) {
            const auto some = bytesOf(part);
            EXPECT_LE(some.size(), (bytes + dealt.size() - 1) / dealt.size() + kPiece);
            for (const auto& byte : some) {
                EXPECT_TRUE(all.insert(byte).second) << byte.first;
            }
        }
        EXPECT_EQ(all, expected) << parts;
    }
}

TEST(DealRuns, SmallOnesAreNotSplit) {
    const std::vector<PlanRun> plan = {run(0, 10, 100)};
    EXPECT_EQ(dealRuns(plan, 1000, 8, kPiece, 4000).size(), 1U);
    EXPECT_EQ(dealRuns({}, 0, 8, kPiece, 4000).size(), 1U);
}

}  // namespace
}  // namespace nixl::ucx
#endif
