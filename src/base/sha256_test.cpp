// SHA-256 and HMAC against the published vectors (FIPS 180-4 examples, RFC 4231).
#include "base/sha256.h"

#include <string>

#include <gtest/gtest.h>

namespace nixl::base {
namespace {

std::string hex(const Digest& digest) {
    std::string out;
    for (const uint8_t byte : digest) {
        const char* const digits = "0123456789abcdef";
        out += digits[byte >> 4];
        out += digits[byte & 15];
    }
    return out;
}

TEST(Sha256, PublishedVectors) {
    EXPECT_EQ(hex(sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(hex(sha256("abc")),
              "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(hex(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(hex(sha256(std::string(1'000'000, 'a'))),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesGiveTheWhole) {
    const std::string data(300, 'x');
    for (size_t cut = 0; cut <= data.size(); ++cut) {
        Sha256 hash;
        hash.add(std::string_view(data).substr(0, cut));
        hash.add(std::string_view(data).substr(cut));
        EXPECT_EQ(hash.finish(), sha256(data));
    }
}

TEST(Sha256, Hmac) {
    EXPECT_EQ(hex(hmacSha256(std::string(20, '\x0b'), "Hi There")),
              "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    EXPECT_EQ(hex(hmacSha256("Jefe", "what do ya want for nothing?")),
              "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    EXPECT_EQ(hex(hmacSha256(std::string(131, '\xaa'),
                             "Test Using Larger Than Block-Size Key - Hash Key First")),
              "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

TEST(Sha256, EqualSecret) {
    EXPECT_TRUE(equalSecret("abc", "abc"));
    EXPECT_FALSE(equalSecret("abc", "abd"));
    EXPECT_FALSE(equalSecret("abc", "abcd"));
}

}  // namespace
}  // namespace nixl::base
