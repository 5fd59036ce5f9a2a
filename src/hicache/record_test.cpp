// Log records and fingerprints: round trips, every kind of damage, published vectors.
#include "hicache/record.h"

#include <string>

#include <gtest/gtest.h>

namespace nixl::hicache {
namespace {

std::string put(std::string_view name, uint64_t version) {
    std::string out;
    encode({.type = RecordType::PUT,
            .key = {1, 2},
            .version = version,
            .offset = 4096,
            .length = 100,
            .segment = 3,
            .checksum = 77,
            .name = name},
           out);
    return out;
}

TEST(Fingerprint, matchesThePublishedVectors) {
    const HashSecret secret{0x0706050403020100, 0x0f0e0d0c0b0a0908};
    EXPECT_EQ(fingerprint(secret, ""), (Fingerprint{0xe6a825ba047f81a3, 0x930255c71472f66d}));
    EXPECT_EQ(fingerprint(secret, std::string_view("\0", 1)),
              (Fingerprint{0x44af996bd8c187da, 0x45fc229b11597634}));
    EXPECT_FALSE(fingerprint(secret, "a") == fingerprint(secret, std::string_view("a\0", 2)));
}

TEST(Record, comesBackAsWritten) {
    for (const size_t size : {0, 1, 4, 5, 100, 4096}) {
        const std::string name(size, 'k');
        const std::string bytes = put(name, 9);
        EXPECT_EQ(bytes.size() % 8, 0U);
        EXPECT_EQ(bytes.size(), encodedSize(size));
        Record record;
        size_t used = 0;
        ASSERT_EQ(decode(bytes, record, used), Decoded::RECORD);
        EXPECT_EQ(used, bytes.size());
        EXPECT_EQ(record.name, name);
        EXPECT_EQ(record.key, (Fingerprint{1, 2}));
        EXPECT_EQ(record.version, 9U);
        EXPECT_EQ(record.offset, 4096U);
        EXPECT_EQ(record.length, 100U);
        EXPECT_EQ(record.segment, 3U);
        EXPECT_EQ(record.checksum, 77U);
    }
}

TEST(Record, everyPrefixIsIncompleteAndEveryFlippedBitIsDamage) {
    const std::string bytes = put("some key", 5);
    Record record;
    size_t used = 0;
    for (size_t size = 0; size < bytes.size(); ++size) {
        EXPECT_EQ(decode(bytes.substr(0, size), record, used), Decoded::INCOMPLETE) << size;
    }
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
        std::string bad = bytes;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
        EXPECT_NE(decode(bad, record, used), Decoded::RECORD) << bit;
    }
}

TEST(Record, theKeyOfADamagedOneIsKnownFromWhatIsWhole) {
    for (const size_t size : {1, 4, 5, 8, 100}) {
        const std::string name(size, 'k');
        const std::string bytes = put(name, 9);
        for (size_t i = 0; i < bytes.size(); ++i) {
            std::string bad = bytes;
            bad[i] = static_cast<char>(bad[i] ^ 0xff);
            Record record;
            size_t used = 0;
            ASSERT_TRUE(recover(bad, record, used)) << size << " " << i;
            EXPECT_EQ(used, bad.size());
            EXPECT_EQ(record.type, RecordType::GONE);
            EXPECT_TRUE(record.name == name || record.key == (Fingerprint{1, 2})) << i;
            if (i + 1 < bytes.size()) {  // of the name's end and the fingerprint both
                bad[i + 1] = static_cast<char>(bad[i + 1] ^ 1);
                bad[17] = static_cast<char>(bad[17] ^ 2);
                if (recover(bad, record, used)) {
                    EXPECT_EQ(record.name, name) << i;
                }
            }
        }
    }
    // One that clears an owner is no block of that name.
    std::string clear;
    encode(clearOwner("owner", 7), clear);
    clear[20] = static_cast<char>(clear[20] ^ 1);
    Record record;
    size_t used = 0;
    EXPECT_FALSE(recover(clear, record, used));
}

TEST(Record, whatWasNeverFinishedIsToldFromDamage) {
    const std::string bytes = put("some key", 5);
    for (size_t size = 0; size < bytes.size(); ++size) {
        EXPECT_TRUE(tornPrefix(bytes.substr(0, size))) << size;
    }
    for (size_t i = 0; i < bytes.size(); ++i) {
        std::string bad = bytes;
        bad[i] = static_cast<char>(bad[i] ^ 0xff);
        EXPECT_FALSE(tornPrefix(bad)) << i;
    }
}

TEST(Record, theNextWholeOneIsFoundBehindDamage) {
    const std::string first = put("first", 1);
    const std::string second = put("second", 2);
    std::string bytes = first + second;
    bytes[20] = static_cast<char>(bytes[20] ^ 1);
    EXPECT_EQ(findRecord(bytes, 1), first.size());
    EXPECT_EQ(findRecord(bytes.substr(0, first.size() + 10), 1), std::string::npos);
    EXPECT_EQ(findRecord("garbage" + second, 0), 7U);
}

}  // namespace
}  // namespace nixl::hicache
