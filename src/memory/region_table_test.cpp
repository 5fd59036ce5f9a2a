// The region table against plain lists: what covers what, who holds what, when ranges go.
#include "memory/region_table.h"

#include <algorithm>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nixl::memory {
namespace {

using testing::AllOf;
using testing::HasSubstr;

base::Deadline in(int milliseconds) {
    return std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
}

// Counts those that live, so that a leak or an early end shows.
int alive = 0;
struct Memory final : BackendMemory {
    Memory() { ++alive; }
    ~Memory() override { --alive; }
};

void add(RegionTable& table, const RegistrationList& list, const std::vector<unsigned>& backends) {
    std::vector<RegionTable::Addition> additions;
    for (const RegistrationList::Entry& entry : list.entries) {
        additions.emplace_back();
        additions.back().entry = &entry;
        for (const unsigned backend : backends) {
            additions.back().memories.emplace_back(backend, std::make_unique<Memory>());
        }
    }
    table.add(list.type(), std::move(additions));
}

Status resolve(const RegionTable& table, uint64_t address, uint64_t size, unsigned backend = 0) {
    DescriptorList list;
    list.append(address, size);
    ResolvedSide side;
    std::vector<RegionUse> regions;
    return table.resolve(list, backend, side, regions);
}

TEST(RegionTable, CountsDuplicates) {
    RegionTable table;
    const RegistrationList range{{4096, 100}};
    add(table, range, {0});
    add(table, range, {0});
    add(table, range, {1});
    EXPECT_EQ(table.size(), 1U);
    EXPECT_TRUE(table.remove(range, {0}, in(1000)).ok());
    EXPECT_TRUE(resolve(table, 4096, 100).ok()) << "registered twice, deregistered once";
    EXPECT_TRUE(table.remove(range, {0}, in(1000)).ok());
    EXPECT_FALSE(resolve(table, 4096, 100).ok());
    EXPECT_TRUE(resolve(table, 4096, 100, 1).ok()) << "the other backend still holds it";
    EXPECT_EQ(table.remove(range, {0}, in(1000)).code(), ErrorCode::NOT_FOUND);
    EXPECT_TRUE(table.remove(range, {1}, in(1000)).ok());
    EXPECT_EQ(table.size(), 0U);
    EXPECT_EQ(alive, 0);
}

TEST(RegionTable, ARefusedRemovalChangesNothing) {
    RegionTable table;
    add(table, RegistrationList{{4096, 100}, {8192, 100}}, {0});
    const Status status = table.remove(RegistrationList{{4096, 100}, {8192, 99}}, {0}, in(1000));
    EXPECT_EQ(status.code(), ErrorCode::NOT_FOUND);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("descriptor 1"), HasSubstr("99")));
    EXPECT_TRUE(resolve(table, 4096, 100).ok());
    EXPECT_TRUE(resolve(table, 8192, 100).ok());
    table.clear();
    EXPECT_EQ(alive, 0);
}

TEST(RegionTable, TellsWhatChanged) {
    RegionTable table;
    const uint64_t start = table.version();
    EXPECT_GT(start, 0U);
    add(table, RegistrationList{{4096, 100}, {8192, 100}}, {0});
    const uint64_t both = table.version();
    EXPECT_EQ(table.changedSince(start), (std::vector<uint64_t>{1, 2}));
    EXPECT_EQ(table.changedSince(both), std::vector<uint64_t>());
    add(table, RegistrationList{{8192, 100}}, {0});
    EXPECT_EQ(table.version(), both) << "only counted";
    add(table, RegistrationList{{8192, 100}}, {1});
    EXPECT_EQ(table.changedSince(both), std::vector<uint64_t>{2}) << "another backend holds it";
    const uint64_t before = table.version();
    ASSERT_TRUE(table.remove(RegistrationList{{4096, 100}}, {0}, in(1000)).ok());
    EXPECT_EQ(table.changedSince(before), std::vector<uint64_t>{1});
    EXPECT_EQ(table.changedSince(table.version() + 1), std::nullopt);
    table.changedAltogether();
    EXPECT_EQ(table.changedSince(before), std::nullopt);
    EXPECT_EQ(table.changedSince(table.version()), std::vector<uint64_t>());
}

TEST(RegionTable, WhatChangedLongAgoIsForgotten) {
    RegionTable table;
    const uint64_t start = table.version();
    const RegistrationList range{{4096, 100}};
    while (table.version() - start < RegionTable::kMaxChanges) {
        add(table, range, {0});
        ASSERT_TRUE(table.remove(range, {0}, in(1000)).ok());
    }
    EXPECT_EQ(table.changedSince(start), std::vector<uint64_t>{1});
    add(table, range, {0});
    EXPECT_EQ(table.changedSince(start), std::nullopt);
    EXPECT_EQ(table.changedSince(start + 1), std::vector<uint64_t>{1});
}

TEST(RegionTable, ARemovalThatGaveUpIsAChangeToo) {
    RegionTable table;
    const RegistrationList range{{4096, 100}};
    add(table, range, {0});
    const RegionPtr region = table.byId(1);
    ASSERT_TRUE(region && region->pin());
    const uint64_t before = table.version();
    EXPECT_EQ(table.remove(range, {0}, in(1)).code(), ErrorCode::TIMEOUT);
    EXPECT_EQ(table.changedSince(before), std::vector<uint64_t>{1})
        << "who looked in between did not see it";
    region->unpin();
}

TEST(RegionTable, PinsHoldARangeBack) {
    RegionTable table;
    const RegistrationList range{{4096, 100}};
    add(table, range, {0});
    const RegionPtr region = table.byId(1);
    ASSERT_TRUE(region && region->pin());
    const Status late = table.remove(range, {0}, in(20));
    EXPECT_EQ(late.code(), ErrorCode::TIMEOUT);
    EXPECT_THAT(late.message(), HasSubstr("stays registered"));
    EXPECT_TRUE(resolve(table, 4096, 100).ok());
    EXPECT_TRUE(region->pin()) << "a removal that gave up leaves it usable";
    region->unpin();
    std::thread user([&] {
        // sleeps: so that the removal mostly waits already; it is right either way
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        region->unpin();
    });
    EXPECT_TRUE(table.remove(range, {0}, in(10'000)).ok());
    user.join();
    EXPECT_FALSE(region->pin()) << "it has gone";
    add(table, range, {0});
    EXPECT_NE(table.byId(region->id)->generation, region->generation);
    table.clear();
}

// A file that tells itself from another one under the same number.
struct File final : BackendMemory {
    explicit File(std::string name) : name(std::move(name)) { ++alive; }
    ~File() override { --alive; }
    std::string identity() const override { return name; }
    const std::string name;
};

class StorageTable : public testing::TestWithParam<MemType> {
  protected:
    // Registers [address, +size) of device 7 as `name`; with "" the metadata tells files apart.
    void enter(const std::string& metadata,
               const std::string& name,
               uint64_t address = 0,
               unsigned backend = 0) {
        const RegistrationList list = entry(metadata, address);
        std::vector<RegionTable::Addition> additions(1);
        additions[0].entry = list.entries.data();
        additions[0].memories.emplace_back(backend, std::make_unique<File>(name));
        table_.add(GetParam(), std::move(additions));
    }
    Status leave(const std::string& metadata, uint64_t address = 0) {
        return table_.remove(entry(metadata, address), {0}, in(1000));
    }
    RegistrationList entry(const std::string& metadata, uint64_t address) const {
        RegistrationList list(GetParam());
        list.entries.push_back({address, 4096, 7, metadata});
        return list;
    }
    // The name of what a transfer of device 7 would use; "" where there is nothing.
    std::string used(uint64_t address = 0) {
        DescriptorList list(GetParam());
        list.append(address, 100, 7);
        ResolvedSide side;
        uses_.clear();
        return table_.resolve(list, 0, side, uses_).ok()
                   ? static_cast<const File*>(uses_.at(0).memory)->name
                   : "";
    }
    void TearDown() override {
        uses_.clear();
        table_.clear();
        EXPECT_EQ(alive, 0);
    }

    RegionTable table_;
    std::vector<RegionUse> uses_;
};

INSTANTIATE_TEST_SUITE_P(Types,
                         StorageTable,
                         testing::Values(MemType::FILE, MemType::BLOCK, MemType::OBJECT));

TEST_P(StorageTable, TheNewestRegistrationOfADeviceIdCounts) {
    for (const bool labelled : {false, true}) {  // registered exactly so, or only the number same
        for (const char* name : {"a", "b", "c"}) {
            enter(labelled ? name : "", name);
            EXPECT_EQ(used(), name);
            EXPECT_EQ(used(1 << 20), name);
            EXPECT_EQ(table_.size(), 1U);
            EXPECT_EQ(alive, 1) << "what is stale goes at once";
        }
        for (const char* name : {"b", "a", "c"}) {  // in any order: none of them is an error
            EXPECT_TRUE(leave(labelled ? name : "").ok());
        }
        EXPECT_EQ(leave(labelled ? "c" : "").code(), ErrorCode::NOT_FOUND);
        EXPECT_EQ(used(), "");
    }
}

TEST_P(StorageTable, WhoeverTakesBackAnOldRegistrationLeavesTheNewOne) {
    for (const char* label : {"", "old"}) {
        enter(label, "a");
        enter("", "b");  // with "": the very same words
        EXPECT_TRUE(leave(label).ok());
        EXPECT_EQ(used(), "b");
        EXPECT_TRUE(leave("").ok());
        EXPECT_EQ(used(), "");
    }
    enter("one", "a");
    enter("two", "b");
    RegistrationList both = entry("one", 0);
    both.entries.push_back({0, 4096, 8, ""});
    EXPECT_EQ(table_.remove(both, {0}, in(1000)).code(), ErrorCode::NOT_FOUND);
    EXPECT_TRUE(leave("one").ok()) << "the refused removal changed something";
    EXPECT_EQ(used(), "b");
}

TEST_P(StorageTable, TheSameThingMayBeRegisteredInPieces) {
    enter("", "a", 0);
    used();
    const std::vector<RegionUse> before = uses_;
    enter("", "a", 4096);
    enter("another label", "a", 0);
    EXPECT_TRUE(before.at(0).region->pin()) << "nothing became stale";
    before.at(0).region->unpin();
    EXPECT_EQ(table_.size(), 3U);
    EXPECT_TRUE(leave("another label").ok());
    EXPECT_TRUE(leave("").ok());
    EXPECT_EQ(used(), "a");
    EXPECT_TRUE(leave("", 4096).ok());
    EXPECT_EQ(used(), "");
}

TEST_P(StorageTable, WithoutAnIdentityTheMetadataTells) {
    enter("key", "");
    used();
    const std::vector<RegionUse> before = uses_;
    enter("key", "");
    EXPECT_TRUE(before.at(0).region->pin());
    before.at(0).region->unpin();
    enter("other", "");
    EXPECT_FALSE(before.at(0).region->pin());
    EXPECT_TRUE(before.at(0).region->replaced());
    EXPECT_EQ(alive, 1);
}

TEST_P(StorageTable, WhatATransferStillUsesGoesAfterIt) {
    enter("", "a");
    used();
    const RegionPtr old = uses_.at(0).region;
    ASSERT_TRUE(old->pin());
    enter("", "b");
    EXPECT_EQ(used(), "b");
    EXPECT_EQ(alive, 2) << "ended under a transfer that runs";
    EXPECT_FALSE(old->pin());
    old->unpin();
    enter("", "b");
    EXPECT_EQ(alive, 1);
}

// Random ranges on a small field of bytes; each byte knows how often it is held.
class Field {
  public:
    explicit Field(uint64_t seed) : random_(seed) {}

    void change() {
        if (entries_.size() < 3 || random_() % 3 != 0) {
            const uint64_t start = random_() % (kBytes - 1);
            const uint64_t size = 1 + random_() % std::min<uint64_t>(40, kBytes - start);
            RegistrationList list;
            list.append(kBase + start, size);
            nixl::memory::add(table_, list, {0});
            entries_.push_back(list.entries[0]);
            return;
        }
        const size_t at = random_() % entries_.size();
        RegistrationList list;
        list.entries.push_back(entries_[at]);
        ASSERT_TRUE(table_.remove(list, {0}, in(1000)).ok());
        entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(at));
    }

    void check() {
        const uint64_t start = random_() % kBytes;
        const uint64_t size = 1 + random_() % 60;
        DescriptorList list;
        list.append(kBase + start, size);
        ResolvedSide side;
        std::vector<RegionUse> uses;
        const Status status = table_.resolve(list, 0, side, uses);
        ASSERT_EQ(status.ok(), held(start, size))
            << start << "+" << size << ": " << status.message();
        if (!status.ok()) {
            return;
        }
        const ResolvedSide::Entry entry = side.at(0);
        if (entry.region != kSplit) {
            EXPECT_TRUE(uses.at(entry.region).region->covers(kBase + start, size));
            EXPECT_NE(uses.at(entry.region).memory, nullptr);
            return;
        }
        uint64_t next = kBase + start;
        for (const ResolvedSide::Piece& piece : side.piecesOf(0)) {
            EXPECT_EQ(piece.address, next);
            EXPECT_TRUE(uses.at(piece.region).region->covers(piece.address, piece.size));
            next += piece.size;
        }
        EXPECT_EQ(next, kBase + start + size);
    }

  private:
    static constexpr uint64_t kBase = 1 << 20;
    static constexpr uint64_t kBytes = 300;

    bool held(uint64_t start, uint64_t size) const {
        for (uint64_t byte = kBase + start; byte < kBase + start + size; ++byte) {
            if (std::none_of(entries_.begin(), entries_.end(), [byte](const auto& entry) {
                    return byte >= entry.address && byte < entry.address + entry.size;
                })) {
                return false;
            }
        }
        return true;
    }

    std::mt19937_64 random_;
    RegionTable table_;
    std::vector<RegistrationList::Entry> entries_;
};

TEST(RegionTable, ResolvesExactlyWhatIsHeld) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
        Field field(seed);
        for (int i = 0; i < 300 && !testing::Test::HasFailure(); ++i) {
            field.change();
            field.check();
        }
        ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
    }
    EXPECT_EQ(alive, 0);
}

}  // namespace
}  // namespace nixl::memory
