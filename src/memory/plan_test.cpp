// Plans against the bytes they mean: each byte of the user's lists goes where a plain loop puts it.
#include "memory/plan.h"

#include <map>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/region_table.h"

namespace nixl::memory {
namespace {

using testing::HasSubstr;

// Neighbouring regions, so that descriptors may lie across them.
class PlanTest : public testing::Test {
  public:
    ~PlanTest() override { table_.clear(); }

  protected:
    PlanTest() {
        for (const uint64_t base : {kNear, kFar}) {
            for (uint64_t start = 0; start < kBytes; start += kRegion) {
                list_.append(base + start, kRegion);
            }
        }
        std::vector<RegionTable::Addition> additions;
        for (const RegistrationList::Entry& entry : list_.entries) {
            additions.emplace_back();
            additions.back().entry = &entry;
            additions.back().memories.emplace_back(0, std::make_unique<BackendMemory>());
        }
        table_.add(MemType::DRAM, std::move(additions));
    }

    ResolvedSide side(const DescriptorList& list) {
        ResolvedSide out;
        std::vector<RegionUse> uses;
        const Status status = table_.resolve(list, 0, out, uses);
        EXPECT_TRUE(status.ok()) << status.message();
        return out;
    }
    // `count` descriptors of the given sizes, at random or one after the other.
    DescriptorList place(uint64_t base, const std::vector<uint64_t>& sizes, bool neighbours) {
        DescriptorList out;
        uint64_t at = base + random_() % 100;
        for (const uint64_t size : sizes) {
            out.append(neighbours ? at : base + random_() % (kBytes - size), size);
            at += size;
        }
        if (random_() % 2 == 0) {
            out.compress();
        }
        return out;
    }
    std::vector<uint64_t> sizes(uint64_t count) {
        std::vector<uint64_t> out;
        const uint64_t same = 1 + random_() % 30;
        const bool regular = random_() % 2 == 0;
        for (uint64_t i = 0; i < count; ++i) {
            out.push_back(regular ? same : 1 + random_() % 30);
        }
        return out;
    }

    static constexpr uint64_t kNear = 1 << 20;
    static constexpr uint64_t kFar = 1 << 24;
    static constexpr uint64_t kBytes = 4000;
    static constexpr uint64_t kRegion = 500;
    std::mt19937_64 random_{3};
    RegistrationList list_;
    RegionTable table_;
};

using Bytes = std::vector<std::pair<uint64_t, uint64_t>>;  // local and remote address of each

Bytes bytesOf(const DescriptorList& local, const DescriptorList& remote) {
    std::vector<uint64_t> near;
    std::vector<uint64_t> far;
    for (auto [list, out] : {std::pair(&local, &near), std::pair(&remote, &far)}) {
        for (size_t i = 0; i < list->size(); ++i) {
            for (uint64_t byte = 0; byte < list->at(i).size; ++byte) {
                out->push_back(list->at(i).address + byte);
            }
        }
    }
    Bytes out;
    for (size_t i = 0; i < near.size(); ++i) {
        out.emplace_back(near[i], far.at(i));
    }
    return out;
}

// Also checks the plan's own figures, and that no segment leaves its region.
Bytes bytesOf(const PlanRuns& plan, uint64_t region_size) {
    Bytes out;
    SegmentCursor cursor(plan.runs);
    uint64_t segments = 0;
    for (Segment segment; cursor.next(segment); ++segments) {
        EXPECT_EQ(segment.planOffset, out.size());
        for (uint64_t byte = 0; byte < segment.size; ++byte) {
            out.emplace_back(segment.local + byte, segment.remote + byte);
        }
        for (const uint64_t at : {segment.local, segment.remote}) {
            const uint64_t from = at & ~((uint64_t{1} << 20) - 1);  // the base of its side
            EXPECT_EQ((at - from) / region_size, (at - from + segment.size - 1) / region_size);
        }
    }
    EXPECT_EQ(segments, plan.segments);
    EXPECT_EQ(out.size(), plan.bytes);
    return out;
}

TEST_F(PlanTest, EveryByteGoesWhereAPlainLoopPutsIt) {
    for (int round = 0; round < 400; ++round) {
        const auto lengths = sizes(1 + random_() % 20);
        const DescriptorList local = place(kNear, lengths, random_() % 2 == 0);
        const DescriptorList remote = place(kFar, lengths, random_() % 2 == 0);
        const ResolvedSide near = side(local);
        const ResolvedSide far = side(remote);
        for (const bool merge : {false, true}) {
            const auto plan = pairSides(near, far, merge);
            ASSERT_TRUE(plan.ok()) << plan.status().message();
            ASSERT_EQ(bytesOf(plan.value(), kRegion), bytesOf(local, remote)) << round;
            EXPECT_EQ(plan.value().descriptors, lengths.size());
            if (!merge) {
                EXPECT_GE(plan.value().segments, lengths.size());
            }
        }
    }
}

TEST_F(PlanTest, OneDescriptorIsSplitToMatch) {
    for (int round = 0; round < 100; ++round) {
        const auto lengths = sizes(2 + random_() % 20);
        uint64_t total = 0;
        for (const uint64_t length : lengths) {
            total += length;
        }
        const DescriptorList many = place(kFar, lengths, false);
        const DescriptorList one = place(kNear, {total}, true);
        const auto plan = pairSides(side(one), side(many), true);
        ASSERT_TRUE(plan.ok()) << plan.status().message();
        EXPECT_EQ(bytesOf(plan.value(), kRegion), bytesOf(one, many));
        const auto other = pairSides(side(many), side(one), true);
        ASSERT_TRUE(other.ok()) << other.status().message();
        EXPECT_EQ(bytesOf(other.value(), kRegion), bytesOf(many, one));
    }
}

TEST_F(PlanTest, IndicesPairAsTheyStand) {
    for (int round = 0; round < 200; ++round) {
        const auto lengths = std::vector<uint64_t>(12, 1 + random_() % 30);
        const DescriptorList local = place(kNear, lengths, random_() % 2 == 0);
        const DescriptorList remote = place(kFar, lengths, random_() % 2 == 0);
        std::vector<int32_t> left;
        std::vector<int32_t> right;
        DescriptorList chosen_local;
        DescriptorList chosen_remote;
        for (uint64_t i = 0; i < 1 + random_() % 20; ++i) {
            left.push_back(static_cast<int32_t>(random_() % 12));
            right.push_back(static_cast<int32_t>(random_() % 12));
            const Descriptor near = local.at(static_cast<size_t>(left.back()));
            const Descriptor far = remote.at(static_cast<size_t>(right.back()));
            chosen_local.append(near.address, near.size);
            chosen_remote.append(far.address, far.size);
        }
        const auto plan =
            pairIndices<int32_t>(side(local), left, side(remote), right, random_() % 2 == 0);
        ASSERT_TRUE(plan.ok()) << plan.status().message();
        ASSERT_EQ(bytesOf(plan.value(), kRegion), bytesOf(chosen_local, chosen_remote));
    }
}

TEST_F(PlanTest, NeighboursAreOneSegmentUnlessAskedNotTo) {
    DescriptorList local;
    DescriptorList remote;
    for (uint64_t i = 0; i < 10; ++i) {
        local.append(kNear + 16 * i, 16);
        remote.append(kFar + 16 * i, 16);
    }
    EXPECT_EQ(pairSides(side(local), side(remote), true).value().segments, 1U);
    EXPECT_EQ(pairSides(side(local), side(remote), false).value().segments, 10U);
}

TEST_F(PlanTest, RegularListsStayRuns) {
    DescriptorList local;
    DescriptorList remote;
    local.appendRun({kNear, 2, 0, 3, 150});
    remote.appendRun({kFar, 2, 0, 2, 150});
    EXPECT_LE(pairSides(side(local), side(remote), true).value().runs.size(), 2U);
}

TEST_F(PlanTest, FailuresNameTheUsersDescriptors) {
    for (int round = 0; round < 300; ++round) {
        const auto lengths = sizes(1 + random_() % 12);
        const auto plan =
            pairSides(side(place(kNear, lengths, false)), side(place(kFar, lengths, true)), true);
        ASSERT_TRUE(plan.ok());
        SegmentFailure failure;
        failure.planOffset = random_() % plan.value().bytes;
        failure.size = 1 + random_() % (plan.value().bytes - failure.planOffset);
        failure.done = random_() % (failure.size + 1);
        failure.systemErrno = 5;
        std::map<uint64_t, uint64_t> wanted;  // index: bytes before offset + done
        uint64_t start = 0;
        for (uint64_t i = 0; i < lengths.size(); start += lengths[i], ++i) {
            if (start < failure.planOffset + failure.size &&
                start + lengths[i] > failure.planOffset) {
                const uint64_t moved = failure.planOffset + failure.done;
                wanted[i] = moved <= start ? 0 : std::min(moved - start, lengths[i]);
            }
        }
        // Those that were moved whole did not fail.
        std::erase_if(wanted, [&](const auto& one) { return one.second == lengths[one.first]; });
        std::map<uint64_t, uint64_t> got;
        for (const DescriptorFailure& one : mapFailure(plan.value(), failure)) {
            got[one.index] = one.bytes;
            EXPECT_EQ(one.systemErrno, 5);
        }
        std::erase_if(got, [&](const auto& one) { return one.second == lengths[one.first]; });
        ASSERT_EQ(got, wanted) << "round " << round;
    }
}

TEST_F(PlanTest, OfSeveralFailuresInADescriptorTheFirstByteCounts) {
    // As of a full disk: pieces of one descriptor that were tried side by side, in any order.
    const std::vector<uint64_t> lengths{100, 2048, 100};
    const auto plan =
        pairSides(side(place(kNear, lengths, false)), side(place(kFar, lengths, true)), true);
    ASSERT_TRUE(plan.ok());
    std::vector<SegmentFailure> pieces;
    for (uint64_t at = 256; at < lengths[1]; at += 256) {
        pieces.push_back({100 + at, 256, at == 256 ? 50U : 0U, at == 256 ? 28 : 5});
    }
    for (int round = 0; round < 20; ++round) {
        std::shuffle(pieces.begin(), pieces.end(), random_);
        const std::vector<DescriptorFailure> failed = mapFailures(plan.value(), pieces);
        ASSERT_EQ(failed.size(), 1U);
        EXPECT_EQ(failed[0].index, 1U);
        EXPECT_EQ(failed[0].bytes, 306U);
        EXPECT_EQ(failed[0].systemErrno, 28);
    }
}

}  // namespace
}  // namespace nixl::memory
