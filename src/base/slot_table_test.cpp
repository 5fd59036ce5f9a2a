// Ids: live, released, foreign, and under threads.
#include "base/slot_table.h"

#include <thread>

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

struct Counted {
    explicit Counted(std::atomic<int>& count) : alive(count) { ++alive; }
    ~Counted() { --alive; }
    std::atomic<int>& alive;
};

TEST(SlotTable, ReleasedAndForeignIdsAreNone) {
    std::atomic<int> alive{0};
    SlotTable<Counted> table;
    SlotTable<Counted> other;
    const uint64_t id = table.insert(std::make_unique<Counted>(alive));
    const uint64_t foreign = other.insert(std::make_unique<Counted>(alive));
    EXPECT_TRUE(table.find(id));
    EXPECT_FALSE(table.find(foreign));
    EXPECT_FALSE(table.find(0));
    EXPECT_FALSE(table.find(UINT64_MAX));
    EXPECT_TRUE(table.retire(id));
    EXPECT_FALSE(table.retire(id));
    EXPECT_FALSE(table.find(id));
    EXPECT_EQ(alive, 1);
    const uint64_t again = table.insert(std::make_unique<Counted>(alive));
    EXPECT_NE(again, id);
    EXPECT_FALSE(table.find(id));
}

TEST(SlotTable, AReferenceKeepsTheObject) {
    std::atomic<int> alive{0};
    SlotTable<Counted> table;
    const uint64_t id = table.insert(std::make_unique<Counted>(alive));
    {
        auto held = table.find(id);
        EXPECT_TRUE(table.retire(id));
        EXPECT_EQ(alive, 1);
    }
    EXPECT_EQ(alive, 0);
    EXPECT_EQ(table.size(), 0U);
}

TEST(SlotTable, ThreadsFindAndRetire) {
    std::atomic<int> alive{0};
    SlotTable<Counted> table;
    std::atomic<uint64_t> shared{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> readers;
    for (int i = 0; i < 3; ++i) {
        readers.emplace_back([&] {
            while (!stop) {
                if (auto held = table.find(shared.load())) {
                    EXPECT_GE(held->alive.load(), 1);
                }
            }
        });
    }
    for (int round = 0; round < 20'000; ++round) {
        const uint64_t id = table.insert(std::make_unique<Counted>(alive));
        shared = id;
        EXPECT_TRUE(table.retire(id));
    }
    stop = true;
    for (auto& reader : readers) {
        reader.join();
    }
    EXPECT_EQ(alive, 0);
    EXPECT_EQ(table.size(), 0U);
}

}  // namespace
}  // namespace nixl::base
