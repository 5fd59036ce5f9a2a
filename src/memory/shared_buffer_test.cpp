// See nixl/shared_buffer.h.
#include "nixl/shared_buffer.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nixl {
namespace {

// The errno of what `call` throws, 0 where it throws nothing.
template <typename Call>
std::pair<ErrorCode, int> thrown(Call&& call) {
    try {
        call();
    } catch (const Error& error) {
        return {error.code(), error.systemErrno()};
    }
    return {ErrorCode::OK, 0};
}

TEST(SharedBuffer, IsZeroedMemoryThatCannotShrink) {
    const int lowest = dup(0);  // the number the file will get
    close(lowest);
    SharedBuffer buffer = alloc(100'000);
    ASSERT_EQ(buffer.size(), 100'000U);
    for (const std::byte one : buffer.bytes()) {
        ASSERT_EQ(one, std::byte{0});
    }
    std::memset(buffer.data(), 7, buffer.size());
    struct stat info {};
    ASSERT_EQ(fstat(lowest, &info), 0);
    EXPECT_EQ(info.st_size, 100'000);
    EXPECT_NE(fcntl(lowest, F_GET_SEALS) & F_SEAL_SHRINK, 0);
    EXPECT_NE(fcntl(lowest, F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ(ftruncate(lowest, 0), -1);
    SharedBuffer other = std::move(buffer);
    EXPECT_FALSE(buffer);  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(other.bytes()[99'999], std::byte{7});
    other = {};
    EXPECT_EQ(fstat(lowest, &info), -1);
}

TEST(SharedBuffer, WrongSizes) {
    EXPECT_EQ(thrown([] { alloc(0); }).first, ErrorCode::INVALID_PARAM);
    const auto [code, error] = thrown([] { alloc(size_t{1} << 60); });
    EXPECT_EQ(code, ErrorCode::BACKEND);
    EXPECT_EQ(error, ENOSPC);
}

}  // namespace
}  // namespace nixl
