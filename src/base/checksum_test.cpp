// nixl/checksum.h: the published check value, and joining at every cut.
#include "nixl/checksum.h"

#include <string>

#include <gtest/gtest.h>

namespace nixl {
namespace {

TEST(Checksum, CheckValue) {
    EXPECT_EQ(crc32c(0, "123456789", 9), 0xe3069283U);
    EXPECT_EQ(crc32c(0, "", 0), 0U);
}

TEST(Checksum, JoinsAtEveryCut) {
    std::string bytes;
    for (int i = 0; i < 1000; ++i) {
        bytes += static_cast<char>(i * 7 + i / 13);
    }
    const uint32_t whole = crc32c(0, bytes.data(), bytes.size());
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
        const uint32_t first = crc32c(0, bytes.data(), cut);
        const uint32_t second = crc32c(0, bytes.data() + cut, bytes.size() - cut);
        ASSERT_EQ(crc32cJoin(first, second, bytes.size() - cut), whole) << cut;
    }
}

}  // namespace
}  // namespace nixl
