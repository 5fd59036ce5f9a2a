// From plans to requests: joining, cutting, what a write must be, the limits of parts.
#include "layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nixl::obj {
namespace {

using ::testing::HasSubstr;

class LayoutTest : public ::testing::Test {
  protected:
    LayoutTest() {
        settings_.bucket = "b";
        settings_.partSize = 1000;
        settings_.multipartThreshold = 4000;
        settings_.joinGap = 10;
    }
    // A segment of object 0 or 1.
    void add(uint64_t offset, uint64_t size, uint32_t object = 0) {
        PlanRun run;
        run.local = reinterpret_cast<uint64_t>(memory_) + bytes_;
        run.remote = offset;
        run.size = size;
        run.planOffset = bytes_;
        run.remoteRegion = object;
        runs_.push_back(run);
        bytes_ += size;
    }
    Result<Layout> make(OpType op) {
        const PlanRegion host{MemType::DRAM, 0, UINT64_MAX, 0, {}, nullptr};
        const PlanRegion objects[] = {{MemType::OBJECT, 0, sizes_[0], 1, {}, &first_},
                                      {MemType::OBJECT, 0, sizes_[1], 2, {}, &second_},
                                      {MemType::OBJECT, 0, sizes_[2], 3, {}, &again_}};
        TransferPlan plan;
        plan.op = op;
        plan.localRegions = {&host, 1};
        plan.remoteRegions = objects;
        plan.runs = runs_;
        plan.bytes = bytes_;
        plan.segments = runs_.size();
        return makeLayout(plan, settings_);
    }

    Settings settings_;
    Memory first_{"one"};
    Memory second_{"two"};
    Memory again_{"one"};
    uint64_t sizes_[3] = {UINT64_MAX, UINT64_MAX, UINT64_MAX};
    char memory_[8] = {};
    std::vector<PlanRun> runs_;
    uint64_t bytes_ = 0;
};

TEST_F(LayoutTest, NearPiecesAreOneRange) {
    add(500, 100);
    add(0, 100);
    add(100, 100, 2);  // the same object under another registration
    add(211, 100);     // one byte too far
    add(320, 5);
    const auto layout = make(OpType::READ);
    ASSERT_TRUE(layout.ok());
    const auto& ranges = layout.value().ranges;
    ASSERT_EQ(ranges.size(), 3U);
    EXPECT_EQ(ranges[0].offset, 0U);
    EXPECT_EQ(ranges[0].size, 200U);
    EXPECT_EQ(ranges[1].offset, 211U);
    EXPECT_EQ(ranges[1].size, 114U);
    EXPECT_EQ(ranges[2].offset, 500U);
}

TEST_F(LayoutTest, LongRangesAreCutAtPartSize) {
    add(1500, 2000);
    const auto layout = make(OpType::READ);
    ASSERT_TRUE(layout.ok());
    ASSERT_EQ(layout.value().ranges.size(), 3U);
    EXPECT_EQ(layout.value().ranges[0].size, 500U);
    EXPECT_EQ(layout.value().ranges[1].offset, 2000U);
    EXPECT_EQ(layout.value().ranges[2].size, 500U);
}

TEST_F(LayoutTest, ARegistrationThatIsReadWholeIsAskedForWhole) {
    sizes_[0] = 700;
    sizes_[2] = 600;  // the same object, shorter
    add(0, 700);
    add(0, 5, 1);
    sizes_[1] = 6;
    const auto layout = make(OpType::READ);
    ASSERT_TRUE(layout.ok());
    ASSERT_EQ(layout.value().ranges.size(), 2U);
    EXPECT_TRUE(layout.value().ranges[0].whole);
    EXPECT_FALSE(layout.value().ranges[1].whole);
}

TEST_F(LayoutTest, TheSameBytesTwiceAreTwoRanges) {
    add(0, 100);
    add(50, 100);
    const auto layout = make(OpType::READ);
    ASSERT_TRUE(layout.ok());
    EXPECT_EQ(layout.value().ranges.size(), 2U);
}

TEST_F(LayoutTest, AWriteIsTheWholeObject) {
    add(100, 50);
    add(0, 100, 2);
    EXPECT_TRUE(make(OpType::WRITE).ok());
    add(151, 10);
    const auto gap = make(OpType::WRITE);
    ASSERT_FALSE(gap.ok());
    EXPECT_EQ(gap.status().code(), ErrorCode::NOT_SUPPORTED);
    EXPECT_THAT(gap.status().message(), HasSubstr("\"b/one\": bytes 150 to 150 are missing"));
    settings_.mergeWrites = true;
    settings_.mergeLimit = 160;
    EXPECT_THAT(make(OpType::WRITE).status().message(), HasSubstr("above merge_limit, 160"));
    settings_.mergeLimit = 161;
    EXPECT_TRUE(make(OpType::WRITE).ok());
    add(20, 1);
    EXPECT_THAT(make(OpType::WRITE).status().message(), HasSubstr("20 to 20 are written twice"));
}

TEST(PartSize, GrowsWithTheObject) {
    const PartLimits limits{10, 1 << 30};
    EXPECT_EQ(choosePartSize(100 << 20, 16 << 20, limits), 16U << 20);
    EXPECT_EQ(choosePartSize(200 << 20, 16 << 20, limits), 20U << 20);
    EXPECT_EQ(choosePartSize((200 << 20) + 1, 16 << 20, limits), 21U << 20);
    EXPECT_EQ(choosePartSize(10ULL << 30, 16 << 20, limits), 1ULL << 30);
    EXPECT_EQ(choosePartSize((10ULL << 30) + 1, 16 << 20, limits), 0U);
    EXPECT_EQ(choosePartSize(5ULL << 40, 16 << 20), 525ULL << 20);
    EXPECT_NE(choosePartSize(10'000 * (5ULL << 30), 16 << 20), 0U);
    EXPECT_EQ(choosePartSize(10'000 * (5ULL << 30) + 1, 16 << 20), 0U);
}

TEST(Pieces, CursorGoesThroughGaps) {
    char memory[100] = {};
    const Piece pieces[] = {{10, 5, memory, 0}, {15, 0, memory + 5, 5}, {20, 10, memory + 5, 5}};
    PieceCursor cursor(pieces, 12);
    EXPECT_EQ(cursor.place(100).size, 3U);
    EXPECT_EQ(cursor.place(2).size, 2U);
    cursor.advance(3);
    EXPECT_EQ(cursor.place(100).size, 0U);
    EXPECT_EQ(cursor.gap(), 5U);
    cursor.advance(5);
    EXPECT_EQ(cursor.place(100).memory, memory + 5);
    cursor.advance(10);
    EXPECT_EQ(cursor.gap(), UINT64_MAX);
    cursor.seek(0);
    EXPECT_EQ(cursor.gap(), 10U);
}

}  // namespace
}  // namespace nixl::obj
