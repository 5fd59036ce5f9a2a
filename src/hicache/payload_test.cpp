// Payload moved by the store itself: many blocks a call, odd lengths, several parts, files that
// end early or are gone, and what a failure leaves of its neighbours.
#include "hicache/payload.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <random>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "hicache/directory.h"
#include "hicache/system.h"

namespace nixl::hicache {
namespace {

namespace fs = std::filesystem;

class Payload : public testing::Test {
  protected:
    void SetUp() override {
        path_ = (fs::temp_directory_path() / ("nixl-payload-" + randomName())).string();
        ASSERT_TRUE(openFile(path_, O_WRONLY | O_CREAT).ok());
    }
    void TearDown() override { fs::remove(path_); }

    // Blocks of random bytes, each in two parts, at aligned extents one after the other.
    void makeBlocks(const std::vector<size_t>& lengths) {
        std::mt19937_64 random(7);
        uint64_t offset = 0;
        blocks_.clear();
        items_.clear();
        for (const size_t length : lengths) {
            std::string block(length, '\0');
            for (char& c : block) {
                c = static_cast<char>(random());
            }
            blocks_.push_back(block);
            Item item;
            item.offset = offset;
            item.length = length;
            item.state = ItemState::NEW;
            items_.push_back(item);
            offset += alignUp(length);
        }
    }

    std::vector<Piece> pieces(std::vector<std::string>& memory) {
        parts_.assign(memory.size() * 2, {});
        std::vector<Piece> out;
        for (size_t i = 0; i < memory.size(); ++i) {
            const auto base = reinterpret_cast<uint64_t>(memory[i].data());
            const size_t half = memory[i].size() / 3;
            parts_[2 * i] = {base, half, 0};
            parts_[2 * i + 1] = {base + half, memory[i].size() - half, 0};
            out.push_back({&items_[i], std::span(parts_).subspan(2 * i, 2), &path_});
        }
        return out;
    }

    Status write() { return movePieces(pieces(blocks_), {.write = true, .checksums = true}); }

    Status read(bool backwards = false) {
        target_.clear();
        for (Item& item : items_) {
            item.state = ItemState::HIT;
            target_.emplace_back(item.length, '?');
        }
        std::vector<Piece> wanted = pieces(target_);
        if (backwards) {
            std::reverse(wanted.begin(), wanted.end());
        }
        return movePieces(wanted, {.checksums = true});
    }

    std::string path_;
    std::vector<std::string> blocks_;
    std::vector<std::string> target_;
    std::vector<Item> items_;
    std::vector<Part> parts_;
};

std::vector<size_t> oddLengths() {
    std::vector<size_t> lengths = {0, 1, 4095, 4096, 4097, 3U << 20, 64, 262144, 262145};
    for (size_t i = 0; i < 3000; ++i) {
        lengths.push_back(i % 5 == 0 ? 8192 : 100 + i);
    }
    return lengths;
}

TEST_F(Payload, blocksOfAnyLengthComeBackInAnyOrder) {
    makeBlocks(oddLengths());
    ASSERT_TRUE(write().ok());
    for (size_t i = 0; i < items_.size(); ++i) {
        EXPECT_EQ(items_[i].state, ItemState::NEW);
        EXPECT_EQ(items_[i].checksum, base::crc32c(blocks_[i])) << i;
    }
    for (const bool backwards : {false, true}) {
        ASSERT_TRUE(read(backwards).ok());
        EXPECT_TRUE(target_ == blocks_);
    }
}

TEST_F(Payload, aChangedByteIsThatBlocksOnly) {
    makeBlocks({5000, 6000, 7000});
    ASSERT_TRUE(write().ok());
    auto fd = openFile(path_, O_WRONLY);
    const char other = static_cast<char>(blocks_[1][4500] + 1);
    ASSERT_TRUE(writeAll(fd.value().get(), path_, &other, 1, items_[1].offset + 4500).ok());
    EXPECT_TRUE(read().ok());
    EXPECT_EQ(items_[0].state, ItemState::HIT);
    EXPECT_EQ(items_[1].state, ItemState::CORRUPT);
    EXPECT_EQ(items_[2].state, ItemState::HIT);
    EXPECT_EQ(target_[2], blocks_[2]);
}

TEST_F(Payload, aFileThatEndsEarlyFailsTheBlocksBehind) {
    makeBlocks(std::vector<size_t>(200, 5000));
    ASSERT_TRUE(write().ok());
    fs::resize_file(path_, items_[150].offset + 10);
    const Status status = read();
    EXPECT_NE(status.message().find("ends at byte"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(path_), std::string::npos);
    for (size_t i = 0; i < items_.size(); ++i) {
        EXPECT_EQ(items_[i].state, i < 150 ? ItemState::HIT : ItemState::FAILED) << i;
        EXPECT_TRUE(i >= 150 || target_[i] == blocks_[i]);
    }
}

TEST_F(Payload, aMissingFileFailsWithItsNameAndTheOthersGoOn) {
    makeBlocks({100, 200});
    const std::string missing = path_ + ".gone";
    auto wanted = pieces(blocks_);
    wanted[0].path = &missing;
    const Status status = movePieces(wanted, {.write = true});
    EXPECT_EQ(status.systemErrno(), ENOENT);
    EXPECT_NE(status.message().find(missing), std::string::npos);
    EXPECT_EQ(items_[0].state, ItemState::FAILED);
    EXPECT_EQ(items_[1].state, ItemState::NEW);
}

TEST_F(Payload, aLimitInTheMiddleFailsOnlyWhatIsBeyondIt) {
    makeBlocks(std::vector<size_t>(64, 8192));
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const rlimit small{40 * 8192 + 100, before.rlim_max};
    const auto old = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const Status status = write();
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, old);
    EXPECT_EQ(status.systemErrno(), EFBIG) << status.message();
    for (size_t i = 0; i < items_.size(); ++i) {
        EXPECT_EQ(items_[i].state, i < 40 ? ItemState::NEW : ItemState::FAILED) << i;
    }
}

TEST_F(Payload, filesThatExistAreNotMadeAgain) {
    makeBlocks({100, 200});
    const std::string fresh = path_ + ".new";
    auto wanted = pieces(blocks_);
    wanted[1].path = &fresh;
    items_[1].offset = 0;
    const Status status = movePieces(wanted, {.write = true, .create = true});
    EXPECT_EQ(status.systemErrno(), EEXIST) << status.message();
    EXPECT_EQ(items_[0].state, ItemState::FAILED);
    EXPECT_EQ(items_[1].state, ItemState::NEW);
    EXPECT_EQ(fs::file_size(fresh), 200U);
    fs::remove(fresh);
}

TEST_F(Payload, nothingAtAllIsNoError) {
    EXPECT_TRUE(movePieces({}, {.checksums = true}).ok());
}

}  // namespace
}  // namespace nixl::hicache
