// How transfers are dealt out to engines and workers.
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

// A plan of one run for each device: from memory of the device to host memory, `size` bytes each.
struct DevicePlan {
    explicit DevicePlan(const std::vector<uint64_t>& devices, uint64_t size) {
        for (const uint64_t device : devices) {
            PlanRegion region;
            region.type = MemType::VRAM;
            region.deviceId = device;
            locals.push_back(region);
            PlanRun one = run(plan.bytes, size, 1);
            one.localRegion = static_cast<uint32_t>(locals.size() - 1);
            runs.push_back(one);
            plan.bytes += size;
        }
        plan.localRegions = locals;
        plan.remoteRegions = remotes;
        plan.runs = runs;
    }
    // Bytes for each engine.
    std::vector<uint64_t> dealt(size_t engines) const {
        std::vector<uint64_t> bytes;
        for (const auto& share : dealEngines(plan, engines)) {
            bytes.push_back(0);
            for (const PlanRun& part : share) {
                bytes.back() += part.size * part.count;
            }
        }
        return bytes;
    }

    std::vector<PlanRegion> locals;
    std::vector<PlanRegion> remotes = std::vector<PlanRegion>(1);
    std::vector<PlanRun> runs;
    TransferPlan plan;
};

using Bytes = std::vector<uint64_t>;

TEST(DealEngines, SmallOnesGoByTheEngineOfTheirDevice) {
    EXPECT_EQ(DevicePlan({1}, 1000).dealt(4), (Bytes{0, 1000, 0, 0}));
    EXPECT_EQ(DevicePlan({6, 0, 2}, 1000).dealt(4), (Bytes{1000, 0, 2000, 0}));
    EXPECT_EQ(DevicePlan({}, 0).dealt(2), (Bytes{0, 0}));
}

TEST(DealEngines, TheSideWithAGpuDecides) {
    DevicePlan plan({1}, 1000);
    plan.locals[0].type = MemType::DRAM;
    EXPECT_EQ(plan.dealt(4), (Bytes{0, 1000, 0, 0}));
    plan.remotes[0].type = MemType::VRAM;
    plan.remotes[0].deviceId = 3;
    EXPECT_EQ(plan.dealt(4), (Bytes{0, 0, 0, 1000}));
}

TEST(DealEngines, IdleEnginesHelpWithLargeOnes) {
    constexpr uint64_t kMib = 1 << 20;
    EXPECT_EQ(DevicePlan({1}, 64 * kMib).dealt(1), Bytes{64 * kMib});
    EXPECT_EQ(DevicePlan({1}, 64 * kMib).dealt(2), (Bytes{32 * kMib, 32 * kMib}));
    EXPECT_EQ(DevicePlan({0, 1}, 64 * kMib).dealt(2), (Bytes{64 * kMib, 64 * kMib}));
    EXPECT_EQ(DevicePlan({0, 1}, 64 * kMib).dealt(4),
              (Bytes{32 * kMib, 32 * kMib, 32 * kMib, 32 * kMib}));
    EXPECT_EQ(DevicePlan({0}, 4 * kMib).dealt(8)[0], 2 * kMib);
}

TEST(Lists, AreTheSameAfterwards) {
    const std::vector<std::string> all = {"one", std::string(300, 'x'), std::string("\0z", 2)};
    EXPECT_EQ(unpackList(packList(all)), all);
    EXPECT_TRUE(unpackList("").empty());
    EXPECT_TRUE(unpackList("abc").empty());
    EXPECT_TRUE(unpackList(packList(all).substr(0, 20)).empty());
}

}  // namespace
}  // namespace nixl::ucx
#endif
