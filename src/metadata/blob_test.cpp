// The part of the blob that tells versions and differences; the rest is in
// tests/cpp/golden_test.cpp.
#include "metadata/blob.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"

namespace nixl::metadata {
namespace {

Blob difference() {
    Blob blob;
    blob.name = "agent";
    blob.incarnation = {1, 2, 3};
    blob.partial = true;
    blob.connection = false;
    blob.backends.push_back({"UCX", ""});
    blob.version = 9;
    blob.base = 7;
    blob.removed = {3, 500, 4};
    return blob;
}

// A damaged copy with a checksum that fits.
std::string with(std::string bytes, size_t at_from_end, char value) {
    bytes[bytes.size() - 4 - at_from_end] = value;
    bytes.resize(bytes.size() - 4);
    const uint32_t sum = base::crc32c(bytes);
    for (int i = 0; i < 4; ++i) {
        bytes.push_back(static_cast<char>(sum >> (8 * i)));
    }
    return bytes;
}

TEST(BlobTest, VersionsAndWhatIsGone) {
    const auto read = decodeBlob(encodeBlob(difference()));
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read.value().version, 9U);
    EXPECT_EQ(read.value().base, 7U);
    EXPECT_EQ(read.value().removed, (std::vector<uint64_t>{3, 500, 4}));
    EXPECT_TRUE(read.value().partial);
}

TEST(BlobTest, WithoutAVersionTheSectionIsLeftOut) {
    Blob blob = difference();
    blob.version = 0;
    blob.base = 0;
    blob.removed.clear();
    const std::string bytes = encodeBlob(blob);
    EXPECT_EQ(bytes.size() + 2 + 8 + 8 + 1 + 5, encodeBlob(difference()).size());
    EXPECT_EQ(decodeBlob(bytes).value().version, 0U);
}

TEST(BlobTest, MoreRemovedRegionsThanBytesAreRefused) {
    const std::string bytes = encodeBlob(difference());
    // The section ends with {count, 3, 500 - 3, 4 - 500}: 1 and 1 + 2 + 2 bytes.
    EXPECT_TRUE(decodeBlob(with(bytes, 6, 3)).ok());
    EXPECT_EQ(decodeBlob(with(bytes, 6, 100)).status().code(), ErrorCode::INVALID_PARAM);
    EXPECT_EQ(decodeBlob(with(bytes, 6, 4)).status().code(), ErrorCode::INVALID_PARAM);
}

TEST(BlobTest, AVersionBeforeItsBaseIsRefused) {
    Blob blob = difference();
    blob.base = 10;
    EXPECT_EQ(decodeBlob(encodeBlob(blob)).status().code(), ErrorCode::INVALID_PARAM);
}

}  // namespace
}  // namespace nixl::metadata
