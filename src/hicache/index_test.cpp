// The index against a standard map, and its order of use.
#include "hicache/index.h"

#include <map>
#include <random>

#include <gtest/gtest.h>

namespace nixl::hicache {
namespace {

Fingerprint key(uint64_t i) {
    return {i * 0x9e3779b97f4a7c15, i};
}

TEST(Index, behavesLikeAMapUnderRandomInsertAndErase) {
    Index index;
    std::map<uint64_t, uint32_t> model;
    std::mt19937_64 random(7);
    for (int step = 0; step < 200000; ++step) {
        const uint64_t k = random() % 5000;
        const auto known = model.find(k);
        ASSERT_EQ(index.find(key(k)), known == model.end() ? kNone : known->second);
        if (known == model.end()) {
            model[k] = index.insert(key(k));
        } else if (random() % 2 == 0) {
            index.erase(known->second);
            model.erase(known);
        }
    }
    ASSERT_EQ(index.size(), model.size());
    for (const auto& [k, id] : model) {
        ASSERT_EQ(index.find(key(k)), id);
    }
}

TEST(Index, collidingHomesSurviveErase) {
    Index index;
    std::vector<uint32_t> ids;
    for (uint64_t i = 0; i < 100; ++i) {
        ids.push_back(index.insert({5, i}));  // all want the same bucket
    }
    for (uint64_t i = 0; i < 100; i += 2) {
        index.erase(ids[i]);
    }
    for (uint64_t i = 0; i < 100; ++i) {
        EXPECT_EQ(index.find({5, i}), i % 2 == 0 ? kNone : ids[i]);
    }
}

TEST(Index, oldestIsTheLeastRecentlyUsed) {
    Index index;
    const uint32_t a = index.insert(key(1));
    const uint32_t b = index.insert(key(2));
    const uint32_t c = index.insert(key(3));
    EXPECT_EQ(index.oldest(), a);
    index.touch(a);
    EXPECT_EQ(index.oldest(), b);
    index.erase(b);
    EXPECT_EQ(index.oldest(), c);
    EXPECT_EQ(index.at(c).newer, a);
    index.erase(c);
    index.erase(a);
    EXPECT_EQ(index.oldest(), kNone);
}

}  // namespace
}  // namespace nixl::hicache
