// Series: buckets, threads beyond the slots, tables beyond their room.
#include "telemetry/series.h"

#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nixl::telemetry {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

TEST(SeriesTest, BucketsEndWhereTheirBoundsSay) {
    EXPECT_EQ(timeBucket(nanoseconds(0)), 0U);
    EXPECT_EQ(timeBucket(nanoseconds(-5)), 0U);
    for (size_t i = 0; i + 1 < kTimeBuckets; ++i) {
        EXPECT_EQ(timeBucket(timeBound(i)), i);
        EXPECT_EQ(timeBucket(timeBound(i) + nanoseconds(1)), i + 1);
    }
    EXPECT_EQ(timeBucket(std::chrono::hours(1)), kTimeBuckets - 1);
    EXPECT_EQ(sizeBucket(0), 0U);
    for (size_t i = 0; i + 1 < kSizeBuckets; ++i) {
        EXPECT_EQ(sizeBucket(sizeBound(i)), i) << sizeBound(i);
        EXPECT_EQ(sizeBucket(sizeBound(i) + 1), i + 1);
    }
    EXPECT_EQ(sizeBucket(UINT64_MAX), kSizeBuckets - 1);
}

TEST(SeriesTest, CountsByHowATransferEnded) {
    SeriesTable table;
    const SeriesPtr series = table.find("UCX", "host", "a \"b\"", OpType::WRITE);
    for (int i = 0; i < 5; ++i) {
        series->posted();
    }
    series->ended(End::DONE, 4096, microseconds(3));
    series->ended(End::DONE, 64, microseconds(100));
    series->ended(End::FAILED, 64, microseconds(1));
    series->error(ErrorCode::REMOTE_DISCONNECT);
    series->ended(End::CANCELED, 64, microseconds(1));
    const auto all = table.read();
    ASSERT_EQ(all.size(), 1U);
    const TransferCounts& counts = all[0];
    EXPECT_EQ(counts.peer, "a \"b\"");
    EXPECT_EQ(counts.posts, 5U);
    EXPECT_EQ(counts.done, 2U);
    EXPECT_EQ(counts.failed, 1U);
    EXPECT_EQ(counts.canceled, 1U);
    EXPECT_EQ(counts.inProgress(), 1U);
    EXPECT_EQ(counts.bytes, 4160U);
    EXPECT_EQ(counts.time, microseconds(103));
    EXPECT_EQ(counts.times[2], 1U);  // 3 us: at most 4
    EXPECT_EQ(counts.times[7], 1U);
    EXPECT_EQ(counts.sizes[0], 1U);
    EXPECT_EQ(counts.sizes[3], 1U);
    EXPECT_EQ(counts.errors.at(ErrorCode::REMOTE_DISCONNECT), 1U);
}

// More threads at a time than there are slots: the rest share one, and nothing is lost.
TEST(SeriesTest, ManyThreadsLoseNothing) {
    constexpr unsigned kThreads = kSlots + 16;
    constexpr uint64_t kTimes = 2000;
    SeriesTable table;
    const SeriesPtr series = table.find("UCX", "local", "b", OpType::READ);
    for (int round = 0; round < 2; ++round) {
        std::atomic<unsigned> ready{0};
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < kThreads; ++i) {
            threads.emplace_back([&] {
                ready.fetch_add(1);
                while (ready.load() < kThreads) {
                    std::this_thread::yield();
                }
                for (uint64_t n = 0; n < kTimes; ++n) {
                    series->posted();
                    series->ended(End::DONE, 10, microseconds(1));
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
    const TransferCounts counts = table.read().at(0);
    EXPECT_EQ(counts.done, uint64_t{2} * kThreads * kTimes);
    EXPECT_EQ(counts.posts, counts.done);
    EXPECT_EQ(counts.bytes, 10 * counts.done);
    EXPECT_EQ(counts.times[0], counts.done);
    EXPECT_EQ(counts.sizes[0], counts.done);
}

TEST(SeriesTest, AnEndedThreadsNumberIsTakenAgain) {
    std::vector<unsigned> seen;
    for (unsigned i = 0; i < 3 * kSlots; ++i) {
        std::thread([&] { seen.push_back(threadSlot()); }).join();
    }
    EXPECT_THAT(seen, testing::Each(testing::Lt(kSlots)));
}

// Peers come and go: the table stays within its room, and the sums are those of all.
TEST(SeriesTest, WhatIsBeyondTheRoomIsCountedTogether) {
    SeriesTable table;
    const SeriesPtr kept = table.find("UCX", "host", "kept", OpType::WRITE);
    kept->posted();
    constexpr uint64_t kPeers = 5 * kMostSeries;
    for (uint64_t i = 0; i < kPeers; ++i) {
        const SeriesPtr series =
            table.find("UCX", "host", "peer" + std::to_string(i), OpType::WRITE);
        series->posted();
        series->ended(End::DONE, 100, microseconds(5));
    }
    const auto all = table.read();
    EXPECT_LE(all.size(), kMostSeries + 1);
    uint64_t done = 0;
    uint64_t others = 0;
    bool kept_seen = false;
    for (const TransferCounts& counts : all) {
        done += counts.done;
        others += counts.peer == kOtherPeers ? counts.done : 0;
        kept_seen = kept_seen || (counts.peer == "kept" && counts.inProgress() == 1);
    }
    EXPECT_EQ(done, kPeers);
    EXPECT_GE(others, kPeers - kMostSeries);
    EXPECT_TRUE(kept_seen);
}

// Where all are in use, later peers share one.
TEST(SeriesTest, NothingInUseIsGivenUp) {
    SeriesTable table;
    std::vector<SeriesPtr> held;
    for (size_t i = 0; i < kMostSeries + 10; ++i) {
        held.push_back(table.find("UCX", "host", "peer" + std::to_string(i), OpType::READ));
    }
    EXPECT_EQ(held.front()->peer, "peer0");
    EXPECT_EQ(held.back()->peer, kOtherPeers);
    EXPECT_EQ(held.back(), held[kMostSeries]);
    EXPECT_EQ(table.find("UCX", "host", "peer0", OpType::READ), held.front());
}

}  // namespace
}  // namespace nixl::telemetry
