// Room on the disk: the cap, replaced blocks, full disks, file systems without holes.
#include <fstream>

#include "hicache/store_fixture.h"

namespace nixl::hicache {
namespace {

constexpr uint64_t kMiB = 1ULL << 20;

class Room : public PackedStore {
  protected:
    // Takes what is left of the file system.
    void fillUp() {
        std::ofstream filler(dir_ / "filler", std::ios::binary);
        const std::string zeros(4096, '\0');
        while (filler.write(zeros.data(), 4096).flush()) {
        }
    }
};

TEST_F(Room, replacingUnderTheCapTakesNoMoreThanTheCap) {
    auto store = open({.maxBytes = 2 * kMiB});
    uint64_t most = 0;
    for (int i = 0; i < 300; ++i) {
        ASSERT_EQ(putMoved(*store, "k", payload(std::to_string(i), 128 << 10)), ItemState::STORED);
        most = std::max(most, onDisk());
    }
    EXPECT_LE(most, 2 * kMiB);
    std::string value;
    EXPECT_EQ(get(*store, "k", &value), ItemState::HIT);
    EXPECT_EQ(value, payload("299", 128 << 10));
}

TEST_F(Room, whatAnotherWriterReplacesIsGivenBackByItsOwner) {
    auto a = open({.maxBytes = 2 * kMiB});
    auto b = open({.maxBytes = 2 * kMiB});
    for (int i = 0; i < 40; ++i) {
        Store& store = i % 2 == 0 ? *a : *b;
        ASSERT_EQ(putMoved(store, "k", payload(std::to_string(i), 128 << 10)), ItemState::STORED);
    }
    EXPECT_LE(onDisk(), kMiB);
}

TEST_F(Room, aFullDiskIsNotFullWhileMostOfItIsDead) {
    if (!mountHere("tmpfs", "size=8m")) {
        GTEST_SKIP() << "mounting a tmpfs needs root";
    }
    auto store = open();  // no cap: replaced blocks wait for compaction
    for (int i = 0; i < 40; ++i) {
        ASSERT_EQ(putMoved(*store, "k", payload(std::to_string(i), kMiB)), ItemState::STORED) << i;
    }
    std::string value;
    EXPECT_EQ(get(*store, "k", &value), ItemState::HIT);
    EXPECT_EQ(value, payload("39", kMiB));
}

TEST_F(Room, whatCouldNotBeWrittenLeavesNothingOnTheDisk) {
    if (!mountHere("tmpfs", "size=8m")) {
        GTEST_SKIP() << "mounting a tmpfs needs root";
    }
    auto store = open();
    ASSERT_EQ(putMoved(*store, "k", payload("k", 3 * kMiB)), ItemState::STORED);
    for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(putMoved(*store, "big", payload("big", 6 * kMiB)), ItemState::FAILED);
    }
    EXPECT_LE(onDisk(), 3 * kMiB);
    EXPECT_EQ(putMoved(*store, "fits", payload("fits", 4 * kMiB)), ItemState::STORED);
    EXPECT_EQ(get(*store, "k"), ItemState::HIT);
    EXPECT_EQ(get(*store, "fits"), ItemState::HIT);
}

TEST_F(Room, compactionOnAFullDiskGivesTheHolesBack) {
    if (!mountHere("tmpfs", "size=8m")) {
        GTEST_SKIP() << "mounting a tmpfs needs root";
    }
    auto store = open({.segmentBytes = 2 * kMiB});
    for (int i = 0; i < 6; ++i) {  // a segment has one block that stays, and one replaced later
        const std::string n = std::to_string(i);
        ASSERT_EQ(putMoved(*store, "stay" + n, payload("stay" + n, kMiB / 2)), ItemState::STORED);
        ASSERT_EQ(putMoved(*store, "k", payload(n, kMiB / 2)), ItemState::STORED);
    }
    fillUp();
    const uint64_t before = onDisk();
    for (int i = 0; i < 10 && store->maintain(0.2).value(); ++i) {
    }
    EXPECT_LE(onDisk() + 2 * kMiB, before);
    for (int i = 0; i < 6; ++i) {
        EXPECT_EQ(get(*store, "stay" + std::to_string(i)), ItemState::HIT);
    }
}

TEST_F(Room, trimmingOnAFullDiskGivesTheRoomBack) {
    if (!mountHere("tmpfs", "size=8m")) {
        GTEST_SKIP() << "mounting a tmpfs needs root";
    }
    putAll(*open(), "k", 400);
    fillUp();
    auto store = open({.maxBytes = kMiB});
    const auto again = store->maintain(0.5);
    EXPECT_TRUE(again.ok()) << again.status().message();
    EXPECT_LE(onDisk(), kMiB);
    EXPECT_EQ(get(*store, "k399"), ItemState::HIT);
    store = open({.readOnly = true});  // and the log says so
    EXPECT_LE(store->directory(0).stats().liveBytes, kMiB);
}

TEST_F(Room, whereNoHolesAreKnownCompactionGivesTheRoomBack) {
    if (!mountHere("ramfs", "")) {
        GTEST_SKIP() << "mounting a ramfs needs root";
    }
    auto store = open({.maxBytes = 8 * kMiB});
    putAll(*store, "stay", 20);
    for (int i = 0; i < 100; ++i) {
        ASSERT_EQ(putMoved(*store, "k", payload(std::to_string(i), 96 << 10)), ItemState::STORED);
        putAll(*store, "stay" + std::to_string(i) + "-", 1);
    }
    while (store->maintain(0.2).value()) {
    }
    EXPECT_LE(onDisk(), 3 * kMiB);
    EXPECT_EQ(get(*store, "stay3"), ItemState::HIT);
    EXPECT_EQ(get(*store, "stay77-0"), ItemState::HIT);
}

TEST_F(Room, twoBatchesAtOnceMayTogetherBeAboveTheCap) {
    auto store = open({.maxBytes = 10ULL * 8192});
    Batch batches[2];
    std::vector<std::string> blocks;
    for (int n = 0; n < 2; ++n) {
        for (int i = 0; i < 6; ++i) {
            const std::string key = std::to_string(n) + "-" + std::to_string(i);
            store->addKey(batches[n], key, true);
            batches[n].items.back().length = 8192;
            blocks.push_back(payload(key, 8192));
        }
        const Status status = store->reserve(batches[n], false);
        EXPECT_TRUE(status.ok()) << status.message();
    }
    const auto parts = partsOf(blocks);
    for (int n = 0; n < 2; ++n) {
        const auto mine = std::span(parts).subspan(static_cast<size_t>(n) * 6, 6);
        ASSERT_TRUE(store->move(batches[n], ItemState::NEW, mine, 1, true, false).ok());
        ASSERT_TRUE(store->commit(batches[n]).ok());
        for (const Item& item : batches[n].items) {
            EXPECT_EQ(item.state, ItemState::STORED);
        }
        EXPECT_LE(store->directory(0).stats().liveBytes, 10 * 8192U);
    }
    EXPECT_EQ(get(*store, "1-5"), ItemState::HIT);
    EXPECT_EQ(get(*store, "0-0"), ItemState::MISS);  // the oldest
}

TEST_F(Room, trimmingLeavesSoManyBytesOfAllAndTheYoungest) {
    auto store = open({.maxBytes = 1ULL << 30});
    auto other = open();
    putAll(*store, "old", 20);
    putAll(*other, "other", 20);
    putAll(*store, "new", 20);
    const auto live = [](Store& of) { return of.directory(0).stats().liveBytes; };
    const uint64_t before = live(*store);
    EXPECT_EQ(before, 60 * 8192U);
    const auto gone = store->trim(50 * 8192ULL);
    ASSERT_TRUE(gone.ok()) << gone.status().message();
    EXPECT_EQ(gone.value(), 10 * 8192U);
    EXPECT_EQ(live(*store), 50 * 8192U);
    EXPECT_LE(onDisk(), 50 * 8192U);
    EXPECT_EQ(get(*store, "old9"), ItemState::MISS);
    for (const char* stays : {"old10", "new0", "other0"}) {
        EXPECT_EQ(get(*store, stays), ItemState::HIT) << stays;
    }
    EXPECT_EQ(store->trim(0, 0).value(), 30 * 8192U);  // of its own, no more
    EXPECT_EQ(get(*other, "new19"), ItemState::MISS);
    EXPECT_EQ(get(*other, "other19"), ItemState::HIT);
    EXPECT_FALSE(store->trim(0, 1).ok());
    EXPECT_FALSE(open({.readOnly = true})->trim(0).ok());
}

TEST_F(Room, trimmingTakesFromEachDirectoryItsPart) {
    const std::vector<std::string> extents{(dir_ / "a").string(), (dir_ / "b").string()};
    auto opened = Store::open({.directories = extents, .directory = {}});
    ASSERT_TRUE(opened.ok());
    auto store = std::move(opened).value();
    putAll(*store, "k", 200);
    const uint64_t a = store->directory(0).stats().liveBytes;
    const uint64_t b = store->directory(1).stats().liveBytes;
    ASSERT_EQ(a + b, 200 * 8192U);
    EXPECT_GE(store->trim(100 * 8192ULL).value(), 100 * 8192U);
    EXPECT_LE(store->directory(0).stats().liveBytes, a / 2);
    EXPECT_GT(store->directory(0).stats().liveBytes, a / 2 - 8192);
    EXPECT_LE(store->directory(1).stats().liveBytes, b / 2);
    EXPECT_GT(store->directory(1).stats().liveBytes, b / 2 - 8192);
}

// kEvictionSlack: a part of the cap more than is needed goes at once, so the next ones evict none.
TEST_F(Room, evictingFreesALittleMoreThanIsNeeded) {
    constexpr uint64_t kCap = 2 * kEvictionSlack * kAlignment;
    const auto evictions = [](Store& store) { return store.directory(0).stats().evictions; };
    auto store = open({.maxBytes = kCap});
    for (uint64_t i = 0; i < 2 * kEvictionSlack; ++i) {
        putMoved(*store, "k" + std::to_string(i), std::string(100, 'x'));
    }
    EXPECT_EQ(evictions(*store), 0U);
    for (const uint64_t evicted : {3, 3, 3, 6, 6, 6, 9}) {
        putMoved(*store, "more" + randomName(), std::string(100, 'x'));
        EXPECT_EQ(evictions(*store), evicted);
    }
}

}  // namespace
}  // namespace nixl::hicache
