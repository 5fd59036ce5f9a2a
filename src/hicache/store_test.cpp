// The packed store over real files: storing and finding, several writers, crash tails, eviction,
// compaction, removal underneath, fork.
#include "hicache/store.h"

#include <fstream>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "hicache/store_fixture.h"

namespace nixl::hicache {
namespace {

TEST_F(PackedStore, whatWasStoredIsFoundByAllAndAfterReopening) {
    std::vector<std::string> keys;
    {
        auto store = open();
        auto reader = open();
        keys = putAll(*store, "k", 300);
        EXPECT_EQ(get(*store, "k0"), ItemState::HIT);
        EXPECT_EQ(get(*reader, "k299"), ItemState::HIT);
        EXPECT_EQ(get(*store, "k300"), ItemState::MISS);
    }
    auto store = open();
    for (const std::string& key : keys) {
        ASSERT_EQ(get(*store, key), ItemState::HIT) << key;
    }
    EXPECT_EQ(store->directory(0).stats().ownedWriters, 1U);
    EXPECT_EQ(store->directory(0).stats().blocks, 300U);
}

TEST_F(PackedStore, storedKeysAreSkippedAndReplacedOnlyOnRequest) {
    auto store = open();
    put(*store, {"a"}, {payload("a")});
    EXPECT_EQ(put(*store, {"a"}, {payload("other")})[0], ItemState::STORED);
    EXPECT_EQ(get(*store, "a"), ItemState::HIT);
    EXPECT_EQ(put(*store, {"a"}, {payload("other")}, true)[0], ItemState::STORED);
    std::string now;
    EXPECT_EQ(get(*store, "a", &now), ItemState::HIT);
    EXPECT_EQ(now, payload("other"));
    store = open();
    EXPECT_EQ(get(*store, "a", &now), ItemState::HIT);
    EXPECT_EQ(now, payload("other"));
}

TEST_F(PackedStore, containsPrefixCountsToTheFirstGap) {
    auto store = open();
    putAll(*store, "p", 10);
    Batch batch;
    for (const char* key : {"p0", "p1", "p2", "none", "p3"}) {
        store->addKey(batch, key, false);
    }
    EXPECT_EQ(store->containsPrefix(batch).value(), 3U);
}

TEST_F(PackedStore, aKeyThatIsTooLongFailsAtItsPlaceOnly) {
    auto store = open();
    const std::string longest(kMaxKeyBytes, 'k');
    const std::string longer(kMaxKeyBytes + 1, 'k');
    const auto states =
        put(*store, {"a", longer, longest}, {payload("a"), payload(longer), payload(longest)});
    const std::vector<ItemState> wanted = {ItemState::STORED, ItemState::REFUSED,
                                           ItemState::STORED};
    EXPECT_EQ(states, wanted);
    EXPECT_EQ(get(*store, longer), ItemState::MISS);
    Batch batch;
    for (const std::string& key : {std::string("a"), longer, longest}) {
        store->addKey(batch, key, true);
        batch.items.back().length = 10;
    }
    EXPECT_EQ(store->containsPrefix(batch).value(), 1U);
    EXPECT_NE(store->reserve(batch, false).message().find("4096 bytes"), std::string::npos);
    EXPECT_TRUE(store->erase({longer}).ok());
    store = open();
    EXPECT_EQ(get(*store, longest), ItemState::HIT);
    EXPECT_EQ(get(*store, "a"), ItemState::HIT);
}

TEST_F(PackedStore, aTornTailOfTheLogIsDroppedAndAppendingGoesOn) {
    putAll(*open(), "a", 5);
    const fs::path log = files("logs").at(0);
    const auto whole = fs::file_size(log);
    for (const int cut : {1, 30, 71, 72}) {
        fs::resize_file(log, whole);
        {
            auto store = open();
            EXPECT_EQ(store->directory(0).stats().blocks, 5U);
            putAll(*store, "b", 1);
        }
        fs::resize_file(log, fs::file_size(log) - static_cast<uintmax_t>(cut));
        auto store = open();
        EXPECT_EQ(get(*store, "b0"), ItemState::MISS) << cut;
        EXPECT_EQ(get(*store, "a4"), ItemState::HIT) << cut;
        putAll(*store, "c", 1);
        store = open();
        EXPECT_EQ(get(*store, "c0"), ItemState::HIT) << cut;
    }
}

TEST_F(PackedStore, damageInsideTheLogLosesOnlyThatBlock) {
    putAll(*open(), "a", 5);
    const fs::path log = files("logs").at(0);
    std::fstream file(log, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(100);
    file.put('\x5a');
    file.close();
    auto store = open();
    EXPECT_EQ(store->directory(0).stats().blocks, 4U);
    EXPECT_GT(store->directory(0).stats().damagedLogBytes, 0U);
}

TEST_F(PackedStore, aFlippedBitOfThePayloadIsCorruptThenAMiss) {
    auto store = open();
    putAll(*store, "a", 3);
    std::fstream file(files("segments").at(0), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(8192 + 17);
    file.put(static_cast<char>(payload("a1")[17] ^ 1));
    file.close();
    EXPECT_EQ(store->directory(0).check(0, 1 << 30).bad.size(), 1U);
    EXPECT_EQ(get(*store, "a1"), ItemState::CORRUPT);
    EXPECT_EQ(get(*store, "a1"), ItemState::MISS);
    EXPECT_EQ(get(*store, "a0"), ItemState::HIT);
    putAll(*store, "a", 3);
    EXPECT_EQ(get(*store, "a1"), ItemState::HIT);
}

TEST_F(PackedStore, whatCannotBeReadIsNotSaidToExist) {
    auto store = open();
    auto reader = open();
    putAll(*store, "a", 3);
    fs::resize_file(files("segments").at(0), 8192 + 100);
    for (Store* each : {reader.get(), store.get()}) {
        for (const char* key : {"a0", "a1", "a2"}) {
            Batch batch;
            each->addKey(batch, key, false);
            ASSERT_TRUE(each->find(batch).ok());
            std::string block(batch.items[0].length, '\0');
            const std::vector<Part> mine{
                {reinterpret_cast<uint64_t>(block.data()), block.size(), 0}};
            const Status moved = each->move(batch, ItemState::HIT, mine, 1, true, false);
            ASSERT_TRUE(each->confirm(batch).ok());
            const bool there = key[1] == '0';
            EXPECT_EQ(moved.ok(), there);
            EXPECT_EQ(batch.items[0].state, there ? ItemState::HIT : ItemState::MISS);
            EXPECT_EQ(each->containsPrefix(batch).value(), there ? 1U : 0U);
        }
    }
    store = open();
    EXPECT_EQ(store->directory(0).stats().blocks, 1U);
}

TEST_F(PackedStore, aReservationWithoutCommitIsNeverSeen) {
    {
        auto store = open();
        putAll(*store, "a", 2);
        Batch batch;
        store->addKey(batch, "lost", true);
        batch.items[0].length = 100;
        EXPECT_TRUE(store->reserve(batch, false).ok());
    }
    auto store = open();
    EXPECT_EQ(get(*store, "lost"), ItemState::MISS);
    EXPECT_EQ(get(*store, "a1"), ItemState::HIT);
}

TEST_F(PackedStore, theCapEvictsTheLeastRecentlyUsedAndGivesRoomBack) {
    auto store = open({.segmentBytes = 1ULL << 20, .maxBytes = 100ULL * 8192});
    putAll(*store, "old", 50);
    putAll(*store, "mid", 40);
    for (int i = 0; i < 10; ++i) {
        EXPECT_EQ(get(*store, "old" + std::to_string(i)), ItemState::HIT);
    }
    putAll(*store, "new", 40);
    const auto stats = store->directory(0).stats();
    EXPECT_LE(stats.liveBytes, 100ULL * 8192);
    EXPECT_GE(stats.evictions, 30U);
    EXPECT_EQ(get(*store, "old0"), ItemState::HIT);
    EXPECT_EQ(get(*store, "old20"), ItemState::MISS);
    EXPECT_EQ(get(*store, "new39"), ItemState::HIT);
    EXPECT_LE(onDisk(), 120ULL * 8192);  // holes, or a file system without them would show here
    store.reset();
    store = open({.maxBytes = 100ULL * 8192});
    EXPECT_EQ(get(*store, "old20"), ItemState::MISS);
    EXPECT_EQ(get(*store, "old0"), ItemState::HIT);
}

TEST_F(PackedStore, aBatchAboveTheCapIsRefused) {
    auto store = open({.maxBytes = 8192});
    const auto states = put(*store, {"a", "b"}, {payload("a"), payload("b")});
    EXPECT_EQ(states[0], ItemState::REFUSED);
    EXPECT_EQ(put(*store, {"a"}, {payload("a")})[0], ItemState::STORED);
}

TEST_F(PackedStore, compactionMovesLiveBlocksAndRemovesTheSegment) {
    auto store = open({.segmentBytes = 64ULL << 10});
    for (int round = 0; round < 4; ++round) {  // the same keys again: most extents become dead
        std::vector<std::string> keys;
        std::vector<std::string> blocks;
        for (int i = 0; i < 20; ++i) {
            keys.push_back("k" + std::to_string(i));
            blocks.push_back(payload(keys.back()));
        }
        put(*store, keys, blocks, true);
        putAll(*store, "stay" + std::to_string(round) + "-", 3);
    }
    const size_t before = files("segments").size();
    while (store->maintain(0.1).value()) {
    }
    EXPECT_LT(files("segments").size(), before);
    auto other = open();
    for (Store* each : {store.get(), other.get()}) {
        for (int i = 0; i < 20; ++i) {
            EXPECT_EQ(get(*each, "k" + std::to_string(i)), ItemState::HIT) << i;
        }
        EXPECT_EQ(get(*each, "stay0-1"), ItemState::HIT);
    }
    EXPECT_GT(store->directory(0).stats().compactedBytes, 0U);
}

TEST_F(PackedStore, aRewrittenLogSaysTheSameToOldAndNewReaders) {
    auto store = open({.logRewriteBytes = 1000});
    auto reader = open();
    putAll(*store, "keep", 10);
    for (int round = 0; round < 10; ++round) {
        std::vector<std::string> blocks(20, payload("x"));
        std::vector<std::string> keys;
        for (int i = 0; i < 20; ++i) {
            keys.push_back("x" + std::to_string(i));
        }
        put(*store, keys, blocks, true);
        EXPECT_EQ(get(*reader, "keep1"), ItemState::HIT);
    }
    const auto before = store->directory(0).stats().logBytes;
    EXPECT_TRUE(store->maintain(0.9).ok());
    EXPECT_LT(store->directory(0).stats().logBytes, before / 3);
    putAll(*store, "after", 2);
    EXPECT_EQ(get(*reader, "after1"), ItemState::HIT);
    EXPECT_EQ(get(*reader, "keep9"), ItemState::HIT);
    EXPECT_EQ(reader->directory(0).stats().blocks, store->directory(0).stats().blocks);
    EXPECT_EQ(open()->directory(0).stats().blocks, 32U);
}

TEST_F(PackedStore, clearEmptiesEveryWriterAndNothingComesBack) {
    auto a = open();
    auto b = open();
    putAll(*a, "a", 5);
    putAll(*b, "b", 5);
    EXPECT_TRUE(a->clear().ok());
    EXPECT_EQ(get(*a, "b1"), ItemState::MISS);
    EXPECT_EQ(get(*b, "b1"), ItemState::MISS);
    putAll(*b, "c", 1);
    EXPECT_TRUE(b->maintain(0.5).ok());
    a.reset();
    b.reset();
    auto again = open();
    EXPECT_EQ(again->directory(0).stats().blocks, 1U);
    EXPECT_EQ(get(*again, "c0"), ItemState::HIT);
    EXPECT_EQ(get(*again, "a0"), ItemState::MISS);
}

TEST_F(PackedStore, clearingAnOwnerLeavesTheOthers) {
    const auto store_as = [](Store& store, const std::string& key, size_t suffix, size_t owner) {
        Batch batch;
        store.addKey(batch, key, true, scopeOf(suffix, owner));
        const std::string block = payload(key);
        batch.items[0].length = block.size();
        EXPECT_TRUE(store.reserve(batch, true).ok());
        const std::vector<Part> mine{{reinterpret_cast<uint64_t>(block.data()), block.size(), 0}};
        EXPECT_TRUE(store.move(batch, ItemState::NEW, mine, 1, true, false).ok());
        EXPECT_TRUE(store.commit(batch).ok());
    };
    auto a = open({.logRewriteBytes = 0});
    auto b = open();
    store_as(*a, "1_m", 2, 2);
    store_as(*b, "2_m", 2, 2);
    store_as(*a, "3_m.page", 7, 2);
    store_as(*a, "4_m.5.page", 9, 4);  // of another model, "_m.5"
    store_as(*b, "5_m", 0, 0);         // its name is a coincidence
    store_as(*b, "6_xy_m", 5, 5);
    const std::vector<std::string> mine = {"1_m", "2_m", "3_m.page"};
    const std::vector<std::string> others = {"4_m.5.page", "5_m", "6_xy_m"};
    ASSERT_TRUE(a->clearOwners({"_m"}).ok());
    const auto check = [&](Store& store) {
        for (const std::string& key : mine) {
            EXPECT_EQ(get(store, key), ItemState::MISS) << key;
        }
        for (const std::string& key : others) {
            EXPECT_EQ(get(store, key), ItemState::HIT) << key;
        }
    };
    check(*a);
    check(*b);
    for (int i = 0; i < 10; ++i) {
        store_as(*a, "x_z", 2, 2);
    }
    ASSERT_TRUE(a->maintain(0.5).ok());  // rewrites the log
    a.reset();
    b.reset();
    auto again = open({.segmentBytes = 64ULL << 10, .logRewriteBytes = 0});
    check(*again);
    while (again->maintain(0.01).value()) {  // moved blocks keep their owner
    }
    check(*again);
    ASSERT_TRUE(again->clearOwners({"_m.5", ""}).ok());
    EXPECT_EQ(get(*again, "4_m.5.page"), ItemState::MISS);
    EXPECT_EQ(get(*again, "5_m"), ItemState::MISS);
    EXPECT_EQ(get(*again, "6_xy_m"), ItemState::HIT);
    store_as(*again, "1_m", 2, 2);
    again.reset();
    EXPECT_EQ(get(*open(), "1_m"), ItemState::HIT);
}

TEST_F(PackedStore, aNewerValueOfAnotherWriterWinsEvenAfterItIsGone) {
    auto a = open();
    auto b = open();
    put(*a, {"k"}, {payload("one")});
    put(*b, {"k"}, {payload("two")}, true);
    std::string value;
    EXPECT_EQ(get(*a, "k", &value), ItemState::HIT);
    EXPECT_EQ(value, payload("two"));
    putAll(*a, "more", 1);  // says in a's log that its value is superseded
    EXPECT_TRUE(b->erase({"k"}).ok());
    a.reset();
    b.reset();
    EXPECT_EQ(get(*open(), "k"), ItemState::MISS);
}

TEST_F(PackedStore, theDirectoryRemovedUnderneathIsNoticedAndMadeAgain) {
    auto store = open();
    putAll(*store, "a", 3);
    fs::remove_all(dir_);
    EXPECT_EQ(get(*store, "a1"), ItemState::MISS);
    putAll(*store, "b", 3);
    EXPECT_EQ(get(*store, "b1"), ItemState::HIT);
    EXPECT_EQ(get(*store, "a1"), ItemState::MISS);
}

TEST_F(PackedStore, aRemovalBetweenReserveAndCommitFailsTheSet) {
    auto store = open();
    Batch batch;
    store->addKey(batch, "k", true);
    batch.items[0].length = 10;
    ASSERT_TRUE(store->reserve(batch, false).ok());
    fs::remove_all(dir_);
    EXPECT_FALSE(store->commit(batch).ok());
    EXPECT_NE(batch.items[0].state, ItemState::STORED);
}

TEST_F(PackedStore, keysSpreadOverSeveralDirectories) {
    fs::create_directories(dir_ / "x");
    fs::create_directories(dir_ / "y");
    const StoreOptions options{.directories = {(dir_ / "x").string(), (dir_ / "y").string()},
                               .directory = {}};
    {
        auto store = std::move(Store::open(options)).value();
        putAll(*store, "k", 64);
        EXPECT_GT(store->directory(0).stats().blocks, 10U);
        EXPECT_GT(store->directory(1).stats().blocks, 10U);
    }
    auto store = std::move(Store::open(options)).value();
    for (int i = 0; i < 64; ++i) {
        EXPECT_EQ(get(*store, "k" + std::to_string(i)), ItemState::HIT);
    }
}

TEST_F(PackedStore, threadsStoreAndFetchAtOnceWhileBlocksAreEvicted) {
    auto store = open({.segmentBytes = 1ULL << 20, .maxBytes = 4ULL << 20});
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 40; ++i) {
                const std::string prefix = std::to_string(t) + "-" + std::to_string(i) + "-";
                putAll(*store, prefix, 10);
                for (int j = 0; j < 10; ++j) {
                    const ItemState state = get(*store, prefix + std::to_string(j));
                    EXPECT_TRUE(state == ItemState::HIT || state == ItemState::MISS ||
                                state == ItemState::CORRUPT || state == ItemState::FAILED);
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_LE(store->directory(0).stats().liveBytes, 4ULL << 20);
}

TEST_F(PackedStore, aForkedChildIsRefused) {
    auto store = open();
    putAll(*store, "a", 1);
    const pid_t child = fork();
    if (child == 0) {
        Batch batch;
        store->addKey(batch, "a0", false);
        _exit(store->find(batch).ok() ? 1 : 0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST_F(PackedStore, readOnlyLooksButTouchesNothing) {
    putAll(*open(), "a", 2);
    const auto log = files("logs").at(0);
    std::ofstream(log, std::ios::app | std::ios::binary) << "torn";
    const auto size = fs::file_size(log);
    auto store = open({.readOnly = true});
    EXPECT_EQ(get(*store, "a1"), ItemState::HIT);
    EXPECT_EQ(put(*store, {"b"}, {payload("b")})[0], ItemState::REFUSED);
    EXPECT_EQ(fs::file_size(log), size);
}

TEST_F(PackedStore, aForeignFormatIsRefused) {
    fs::create_directories(dir_ / ".nixl-packed");
    std::ofstream(dir_ / ".nixl-packed" / "format") << "something else";
    auto store = Store::open({.directories = {dir_.string()}, .directory = {}});
    ASSERT_FALSE(store.ok());
    EXPECT_NE(store.status().message().find("format"), std::string::npos);
}

}  // namespace
}  // namespace nixl::hicache
