// Descriptor lists against a plain vector: whatever is inside, outside it is a list.
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nixl/descriptor.h"

namespace nixl {
namespace {

using testing::HasSubstr;

std::vector<Descriptor> contents(const DescriptorList& list) {
    std::vector<Descriptor> out;
    for (size_t i = 0; i < list.size(); ++i) {
        out.push_back(list.at(i));
    }
    return out;
}

// A list and what it should hold, built by random calls.
struct Pair {
    DescriptorList list;
    std::vector<Descriptor> model;

    void step(std::mt19937_64& random) {
        const uint64_t address = 1000 * (random() % 100);
        const uint64_t size = 1 + random() % 3;
        const uint64_t device = random() % 2;
        switch (random() % 6) {
            case 0: {
                const uint64_t stride = random() % 5 == 0 ? 0 - size : size * (1 + random() % 3);
                const uint64_t count = random() % 9;
                list.appendRun({address, size, device, stride, count});
                for (uint64_t i = 0; i < count; ++i) {
                    model.push_back({address + i * stride, size, device});
                }
                break;
            }
            case 1:
                list.compress();
                break;
            case 2:
                if (!model.empty()) {
                    const size_t at = random() % model.size();
                    list.erase(at);
                    model.erase(model.begin() + static_cast<std::ptrdiff_t>(at));
                }
                break;
            case 3:
                for (uint64_t i = 0; i < 6; ++i) {  // regular, one by one
                    list.append(address + i * 64, 64, device);
                    model.push_back({address + i * 64, 64, device});
                }
                break;
            default:
                list.append(address, size, device);
                model.push_back({address, size, device});
        }
    }
};

TEST(DescriptorList, IsWhatWasPutIn) {
    std::mt19937_64 random(1);
    for (int round = 0; round < 300; ++round) {
        Pair pair;
        for (int i = 0; i < 40; ++i) {
            pair.step(random);
        }
        ASSERT_EQ(contents(pair.list), pair.model) << "round " << round;
        DescriptorList flat;
        for (const Descriptor& one : pair.model) {
            flat.append(one.address, one.size, one.deviceId);
        }
        EXPECT_TRUE(flat == pair.list) << "equality must not depend on the inner form";
        if (!pair.model.empty()) {
            const Descriptor wanted = pair.model[random() % pair.model.size()];
            const auto first = std::find(pair.model.begin(), pair.model.end(), wanted);
            EXPECT_EQ(pair.list.find(wanted), first - pair.model.begin());
        }
        EXPECT_EQ(pair.list.find({7, 7, 7}), -1);
        const auto again = DescriptorList::deserialize(pair.list.serialize());
        ASSERT_TRUE(again.ok()) << again.status().message();
        EXPECT_TRUE(again.value() == pair.list);
        EXPECT_EQ(contents(again.value()), pair.model);
    }
}

TEST(DescriptorList, RegularOnesStaySmall) {
    DescriptorList list;
    std::vector<uint64_t> rows;
    for (uint64_t i = 0; i < 200'000; ++i) {
        list.append(1 << 20 | i * 8192, 4096);
        rows.insert(rows.end(), {(1 << 20) + i * 8192, 4096, 0});
    }
    list.compress();
    const auto read = DescriptorList::fromRows(MemType::DRAM, rows.data(), 200'000, 3);
    ASSERT_TRUE(read.ok());
    EXPECT_LE(read.value().runs().size(), 1U);
    EXPECT_EQ(read.value().size(), 200'000U);
    EXPECT_EQ(read.value().at(199'999), (Descriptor{(1 << 20) + 199'999 * 8192, 4096, 0}));
    EXPECT_LE(read.value().serialize().size(), 200U);
}

TEST(DescriptorList, RowsOfFiveColumns) {
    const uint64_t rows[] = {100, 8, 1, 16, 3, 500, 4, 0, 0, 1};
    const auto list = DescriptorList::fromRows(MemType::VRAM, rows, 2, 5);
    ASSERT_TRUE(list.ok()) << list.status().message();
    EXPECT_EQ(list.value().type(), MemType::VRAM);
    EXPECT_EQ(contents(list.value()),
              (std::vector<Descriptor>{{100, 8, 1}, {116, 8, 1}, {132, 8, 1}, {500, 4, 0}}));
    const auto wrong = DescriptorList::fromRows(MemType::DRAM, rows, 2, 4);
    ASSERT_FALSE(wrong.ok());
    EXPECT_THAT(wrong.status().message(), HasSubstr("4"));
    EXPECT_TRUE(DescriptorList::fromRows(MemType::DRAM, nullptr, 0, 3).value().empty());
}

TEST(DescriptorList, CountsThatOverflowAreRefused) {
    const uint64_t rows[] = {0, 1, 0, 1, UINT64_MAX, 0, 1, 0, 1, 2};
    const auto list = DescriptorList::fromRows(MemType::DRAM, rows, 2, 5);
    EXPECT_FALSE(list.ok());
}

// Every cut and many flipped bits: an error, never a crash, never other contents.
template <typename List>
void expectDamageFound(const List& list) {
    const std::string good = list.serialize();
    for (size_t size = 0; size < good.size(); ++size) {
        EXPECT_FALSE(List::deserialize(std::string_view(good).substr(0, size)).ok()) << size;
    }
    EXPECT_FALSE(List::deserialize(good + "x").ok());
    for (size_t bit = 0; bit < good.size() * 8; ++bit) {
        std::string bad = good;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
        const auto read = List::deserialize(bad);
        EXPECT_FALSE(read.ok()) << "bit " << bit;
        EXPECT_TRUE(read.ok() || !read.status().message().empty());
    }
}

TEST(DescriptorList, DamagedBytesAreRefused) {
    DescriptorList list(MemType::FILE);
    list.appendRun({4096, 512, 3, 1024, 1000});
    list.append(5, 6, 7);
    expectDamageFound(list);
    RegistrationList registrations(MemType::OBJECT);
    registrations.append(0, 100, 0, std::string("key\0with\xff", 9));
    registrations.append(8, 1, 2, "");
    expectDamageFound(registrations);
    const auto read = RegistrationList::deserialize(registrations.serialize());
    ASSERT_TRUE(read.ok());
    EXPECT_TRUE(read.value() == registrations);
}

TEST(DescriptorList, OneKindIsNotReadAsTheOther) {
    EXPECT_FALSE(RegistrationList::deserialize(DescriptorList().serialize()).ok());
    EXPECT_FALSE(DescriptorList::deserialize(RegistrationList().serialize()).ok());
    EXPECT_TRUE(DescriptorList::deserialize(DescriptorList().serialize()).value().empty());
}

}  // namespace
}  // namespace nixl
