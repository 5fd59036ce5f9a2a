// CRC32C against the published check values and against itself in pieces.
#include "base/crc32c.h"

#include <string>

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

TEST(Crc32c, PublishedValues) {
    // RFC 3720, appendix B.4, and the usual check string.
    EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
    EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
    EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
    EXPECT_EQ(crc32c(""), 0U);
}

TEST(Crc32c, PiecesGiveTheWhole) {
    std::string data(20'011, '\0');
    for (size_t i = 0; i < data.size(); ++i) {
        data[i] = static_cast<char>(i * 131 + (i >> 7));
    }
    uint32_t bytewise = 0;
    for (const char byte : data) {
        bytewise = crc32c(bytewise, &byte, 1);
    }
    EXPECT_EQ(crc32c(data), bytewise);
    for (const size_t cut : {1UL, 7UL, 1024UL, 3072UL, 9001UL}) {
        const uint32_t first = crc32c(0, data.data(), cut);
        EXPECT_EQ(crc32c(first, data.data() + cut, data.size() - cut), bytewise) << cut;
    }
}

}  // namespace
}  // namespace nixl::base
