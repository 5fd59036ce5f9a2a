// Which of this process' memory can be mapped by others, and why not.
#include "lanes/host/shared_memory.h"

#include <cstring>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nixl/shared_buffer.h"

namespace nixl::peer {
namespace {

constexpr size_t kPage = 4096;

uint64_t at(const void* address, uint64_t offset = 0) {
    return reinterpret_cast<uint64_t>(address) + offset;
}

// A memory file of `pages` with these seals, mapped once for each of `times`.
struct MemoryFile {
    MemoryFile(size_t pages, int seals, bool allocate = true) : size(pages * kPage) {
        fd = base::Fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
        EXPECT_EQ(allocate ? posix_fallocate(fd.get(), 0, static_cast<off_t>(size))
                           : ftruncate(fd.get(), static_cast<off_t>(size)),
                  0);
        EXPECT_EQ(seals != 0 ? fcntl(fd.get(), F_ADD_SEALS, seals) : 0, 0);
        memory = map();
    }
    ~MemoryFile() { munmap(memory, size); }
    char* map() const {
        return static_cast<char*>(
            mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
    }
    size_t size;
    base::Fd fd;
    char* memory = nullptr;
};

TEST(SharedMemory, FindsABufferAndPartsOfIt) {
    const SharedBuffer buffer = alloc(10 * kPage);
    SharedMemory memory;
    const auto whole = memory.find(at(buffer.data()), buffer.size());
    EXPECT_EQ(whole.reason, "");
    ASSERT_EQ(whole.pieces.size(), 1U);
    EXPECT_EQ(whole.pieces[0], (MapPiece{at(buffer.data()), 10 * kPage, 0, 0}));
    const auto part = memory.find(at(buffer.data(), 5000), 100);
    ASSERT_EQ(part.pieces.size(), 1U);
    EXPECT_EQ(part.pieces[0], (MapPiece{at(buffer.data(), 5000), 100, 5000, 0}));
    const auto files = memory.takeFiles();
    ASSERT_EQ(files.size(), 1U) << "one file, found once";
    static_cast<char*>(buffer.data())[5000] = 'x';
    char byte = 0;
    ASSERT_EQ(pread(files[0].get(), &byte, 1, 5000), 1);
    EXPECT_EQ(byte, 'x');
}

TEST(SharedMemory, SplitAreasOfOneFileAreOnePiece) {
    const MemoryFile file(6, F_SEAL_SHRINK);
    // The system keeps two areas where the advice differs.
    ASSERT_EQ(madvise(file.memory + 2 * kPage, kPage, MADV_DONTFORK), 0);
    SharedMemory memory;
    const auto found = memory.find(at(file.memory), file.size);
    ASSERT_EQ(found.pieces.size(), 1U);
    EXPECT_EQ(found.pieces[0].size, file.size);
    EXPECT_EQ(found.reason, "");
}

TEST(SharedMemory, PrivatePagesInTheMiddleAreLeftOut) {
    const MemoryFile file(6, F_SEAL_SHRINK);
    ASSERT_NE(mmap(file.memory + 2 * kPage, kPage, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
              MAP_FAILED);
    SharedMemory memory;
    const auto found = memory.find(at(file.memory), file.size);
    ASSERT_EQ(found.pieces.size(), 2U);
    EXPECT_EQ(found.pieces[1], (MapPiece{at(file.memory, 3 * kPage), 3 * kPage, 3 * kPage, 0}));
    EXPECT_NE(found.reason.find("not shareable: use nixl.alloc"), std::string::npos);
}

TEST(SharedMemory, AFileMappedAtSeveralPlacesIsFoundAtEach) {
    const MemoryFile file(2, F_SEAL_SHRINK);
    char* const other = file.map();
    SharedMemory memory;
    EXPECT_EQ(memory.find(at(file.memory), file.size).pieces.at(0).address, at(file.memory));
    EXPECT_EQ(memory.find(at(other), file.size).pieces.at(0).address, at(other));
    EXPECT_EQ(memory.takeFiles().size(), 1U);
    munmap(other, file.size);
}

TEST(SharedMemory, WhatIsNotOfferedSaysWhy) {
    const auto reason = [](const void* address, size_t size) {
        SharedMemory memory;
        const auto found = memory.find(at(address), size);
        EXPECT_TRUE(found.pieces.empty());
        return found.reason;
    };
    const std::vector<char> plain(kPage);
    EXPECT_EQ(reason(plain.data(), plain.size()), "memory is not shareable: use nixl.alloc");
    const MemoryFile unsealed(1, 0);
    EXPECT_NE(reason(unsealed.memory, kPage).find("F_SEAL_SHRINK"), std::string::npos);
    const MemoryFile sparse(4, F_SEAL_SHRINK, false);
    EXPECT_NE(reason(sparse.memory, sparse.size).find("holes"), std::string::npos);
    MemoryFile closed(1, F_SEAL_SHRINK);
    closed.fd.reset();
    EXPECT_NE(reason(closed.memory, kPage).find("no open descriptor"), std::string::npos);
    const MemoryFile read_only(1, F_SEAL_SHRINK);
    ASSERT_EQ(mprotect(read_only.memory, kPage, PROT_READ), 0);
    EXPECT_NE(reason(read_only.memory, kPage).find("not writable"), std::string::npos);
    // In the middle of a large hole, where nothing else is mapped meanwhile.
    constexpr size_t kHole = size_t{1} << 30;
    void* const hole = mmap(nullptr, kHole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(hole, MAP_FAILED);
    ASSERT_EQ(munmap(hole, kHole), 0);
    EXPECT_NE(reason(static_cast<char*>(hole) + kHole / 2, kPage).find("not mapped"),
              std::string::npos);
}

}  // namespace
}  // namespace nixl::peer
