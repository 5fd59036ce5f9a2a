// A cover of overlapping registrations by ranges that share no byte.
#include "cover.h"

#include <random>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "entry_cursor.h"

namespace nixl::mooncake {
namespace {

using Range = Cover::Range;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// What an engine takes: ranges that share no byte, given back by their begin.
class CoverTest : public ::testing::Test {
  protected:
    Cover cover_{{[this](const Range& range) { return take(range); },
                  [this](const Range& range) { drop(range); },
                  [this](const Status& /*status*/) { ++lost_; }}};
    Status take(const Range& range) {
        ++calls_;
        if (range.second == refused_) {
            return Status::backend("refused");
        }
        for (const Range& one : engine_) {
            EXPECT_FALSE(one.first < range.second && range.first < one.second)
                << "shares bytes with what is there";
        }
        EXPECT_LT(range.first, range.second);
        engine_.insert(range);
        return {};
    }
    void drop(const Range& range) {
        ++calls_;
        EXPECT_EQ(engine_.erase(range), 1U);
    }
    std::vector<uint64_t> add(uint64_t begin, uint64_t end) {
        const auto cuts = cover_.add({begin, end});
        EXPECT_TRUE(cuts.ok());
        return cuts.value();
    }
    void expectSame() {
        EXPECT_EQ(std::vector<Range>(engine_.begin(), engine_.end()), cover_.pieces());
    }

    std::set<Range> engine_;
    uint64_t refused_ = 0;
    int calls_ = 0;
    int lost_ = 0;
};

TEST_F(CoverTest, TheSameIsCounted) {
    EXPECT_THAT(add(100, 200), IsEmpty());
    EXPECT_THAT(add(100, 200), IsEmpty());
    EXPECT_EQ(calls_, 1);
    cover_.remove({100, 200});
    EXPECT_THAT(engine_, ElementsAre(Range{100, 200}));
    cover_.remove({100, 200});
    EXPECT_THAT(engine_, IsEmpty());
}

TEST_F(CoverTest, OverlappingOnesAreFilledUp) {
    add(100, 200);
    add(300, 400);
    EXPECT_THAT(add(50, 450), ElementsAre(100, 200, 300, 400));
    EXPECT_THAT(engine_, ElementsAre(Range{50, 100}, Range{100, 200}, Range{200, 300},
                                     Range{300, 400}, Range{400, 450}));
    EXPECT_THAT(add(150, 350), ElementsAre(200, 300));
    cover_.remove({50, 450});
    EXPECT_THAT(engine_, ElementsAre(Range{100, 200}, Range{200, 300}, Range{300, 400}));
    expectSame();
    cover_.remove({100, 200});
    EXPECT_THAT(engine_, ElementsAre(Range{150, 200}, Range{200, 300}, Range{300, 400}));
    cover_.remove({300, 400});
    cover_.remove({150, 350});
    EXPECT_THAT(engine_, IsEmpty());
}

TEST_F(CoverTest, NeighboursAreNoOverlap) {
    add(100, 200);
    EXPECT_THAT(add(200, 300), IsEmpty());
    EXPECT_THAT(engine_, ElementsAre(Range{100, 200}, Range{200, 300}));
}

// Memory that was given back may be another one by the time it comes again.
TEST_F(CoverTest, WhatNobodyHoldsIsGivenBack) {
    add(100, 200);
    const auto cuts = add(150, 300);
    EXPECT_THAT(cuts, ElementsAre(200));
    cover_.remove({100, 200});
    EXPECT_THAT(engine_, ElementsAre(Range{150, 200}, Range{200, 300}));
    add(100, 120);
    add(0, 400);
    cover_.remove({150, 300});
    cover_.remove({0, 400});
    EXPECT_THAT(engine_, ElementsAre(Range{100, 120}));
    expectSame();
    EXPECT_EQ(lost_, 0);
}

TEST_F(CoverTest, APieceFallsApart) {
    add(100, 200);
    add(110, 120);
    add(115, 130);
    add(150, 160);
    cover_.remove({100, 200});
    EXPECT_THAT(engine_, ElementsAre(Range{110, 130}, Range{150, 160}));
    refused_ = 130;
    cover_.remove({110, 120});
    EXPECT_EQ(lost_, 1) << "said, where the engine refuses what it had";
    cover_.remove({115, 130});
    EXPECT_THAT(engine_, ElementsAre(Range{150, 160}));
    expectSame();
}

TEST_F(CoverTest, ARefusedOneLeavesNothing) {
    add(100, 200);
    refused_ = 400;
    EXPECT_FALSE(cover_.add({50, 400}).ok());
    EXPECT_THAT(engine_, ElementsAre(Range{100, 200}));
    expectSame();
    refused_ = 0;
    EXPECT_THAT(add(50, 400), ElementsAre(100, 200));
}

// Whatever comes and goes: each byte that is registered is covered once, and every cut of a
// registration is where pieces meet.
TEST_F(CoverTest, ManyAtRandom) {
    std::mt19937 random(7);
    std::vector<std::pair<Range, std::vector<uint64_t>>> live;
    for (int round = 0; round < 3000; ++round) {
        if (live.size() < 12 && random() % 2 == 0) {
            const uint64_t begin = random() % 60;
            const Range range{begin, begin + 1 + random() % 30};
            live.emplace_back(range, add(range.first, range.second));
        } else if (!live.empty()) {
            const size_t index = random() % live.size();
            cover_.remove(live[index].first);
            live.erase(live.begin() + static_cast<std::ptrdiff_t>(index));
        }
        for (const auto& [range, cuts] : live) {
            uint64_t at = range.first;
            std::vector<uint64_t> ends = cuts;
            ends.push_back(range.second);
            for (const uint64_t end : ends) {  // the engine moves each part in one
                EXPECT_TRUE(std::any_of(
                    engine_.begin(), engine_.end(),
                    [&](const Range& piece) { return piece.first <= at && piece.second >= end; }))
                    << at << " to " << end << " in round " << round;
                at = end;
            }
        }
        for (uint64_t byte = 0; byte < 100; ++byte) {
            const auto holds = [&](const Range& one) {
                return one.first <= byte && byte < one.second;
            };
            EXPECT_EQ(std::any_of(engine_.begin(), engine_.end(), holds),
                      std::any_of(live.begin(), live.end(),
                                  [&](const auto& one) { return holds(one.first); }));
        }
        expectSame();
    }
}

TEST(EntryCursor, CutsWherePiecesMeetAndWhatIsTooLarge) {
    const PlanRun run{1000, 5000, 100, 100, 100, 2, 0, 0, 0};
    const Cuts local{{1030}};
    const Cuts remote{{5090, 5100, 5130}};
    EntryCursor cursor(std::span(&run, 1), local, remote, 50);
    std::vector<std::pair<uint64_t, uint64_t>> seen;
    uint64_t next = 0;
    for (Segment one; cursor.next(one);) {
        EXPECT_EQ(one.planOffset, next);
        EXPECT_EQ(one.local, 1000 + next);
        EXPECT_EQ(one.remote, 5000 + next);
        next += one.size;
        seen.emplace_back(one.planOffset, one.size);
    }
    EXPECT_THAT(
        seen, ElementsAre(std::pair(0, 30), std::pair(30, 50), std::pair(80, 10), std::pair(90, 10),
                          std::pair(100, 30), std::pair(130, 50), std::pair(180, 20)));
    EXPECT_FALSE(cursor.more());
}

}  // namespace
}  // namespace nixl::mooncake
