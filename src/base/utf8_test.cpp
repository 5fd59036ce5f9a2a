// isUtf8 over every character there is, and over bytes that are none.
#include "base/utf8.h"

#include <string>

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

std::string encoded(uint32_t point) {
    std::string out;
    const auto push = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (point < 0x80) {
        push(point);
    } else if (point < 0x800) {
        push(0xC0 | point >> 6);
        push(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        push(0xE0 | point >> 12);
        push(0x80 | (point >> 6 & 0x3F));
        push(0x80 | (point & 0x3F));
    } else {
        push(0xF0 | point >> 18);
        push(0x80 | (point >> 12 & 0x3F));
        push(0x80 | (point >> 6 & 0x3F));
        push(0x80 | (point & 0x3F));
    }
    return out;
}

TEST(Utf8, EveryCharacterAndNoOther) {
    for (uint32_t point = 0; point < 0x120000; ++point) {
        const bool legal = point < 0x110000 && (point < 0xD800 || point > 0xDFFF);
        ASSERT_EQ(isUtf8(encoded(point)), legal) << point;
        ASSERT_EQ(isUtf8("a" + encoded(point) + "b"), legal) << point;
    }
}

TEST(Utf8, LongFormsAndPieces) {
    for (const char* bad :
         {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF",
          "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF", "\xF8\x88\x80\x80\x80", "\xFE", "\xFF", "\xC3",
          "\xE2\x82", "\xF0\x9F\x98", "\xC3\x28", "\xE2\x28\xA1", "\xE2\x82\x28", "abc\xC3"}) {
        EXPECT_FALSE(isUtf8(bad)) << bad;
    }
    EXPECT_TRUE(isUtf8(""));
    EXPECT_TRUE(isUtf8(std::string(3, '\0')));
}

}  // namespace
}  // namespace nixl::base
