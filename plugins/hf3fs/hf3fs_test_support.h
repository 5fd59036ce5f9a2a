// What the tests of the HF3FS backend share: a folder that is a mount to the stand-in of the
// client, and shared memory. Owned by each test; one thread.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hf3fs_backend.h"
#include "testing/buffers.h"
#include "testing/harness.h"

namespace nixl::hf3fs {

// A folder that the stand-in takes for a mounted 3FS; goes away with its files. The first one makes
// the stand-in the client of this process.
class Mount {
  public:
    Mount() {
        setenv("NIXL_HF3FS_LIBRARY", NIXL_HF3FS_STANDIN, 1);
        path_ = std::filesystem::canonical(std::filesystem::temp_directory_path()) /
                "nixl_hf3fs_XXXXXX";
        if (mkdtemp(path_.data()) == nullptr) {
            std::abort();
        }
        std::filesystem::create_directories(path_ + "/3fs-virt/iovs");
    }
    ~Mount() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    Mount(const Mount&) = delete;
    Mount& operator=(const Mount&) = delete;

    const std::string& path() const { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }
    // How many iovs are published.
    size_t published() const {
        const std::filesystem::directory_iterator all(path_ + "/3fs-virt/iovs");
        return static_cast<size_t>(std::distance(begin(all), end(all)));
    }

  private:
    std::string path_;
};

// Memory of a file below /dev/shm, which 3FS reaches without a copy; it begins within a page.
class ShmBuffer final : public testkit::Buffer {
  public:
    explicit ShmBuffer(uint64_t size) : Buffer(size), bytes_(size + kBefore) {
        char path[] = "/dev/shm/nixl_test_XXXXXX";
        const int fd = mkostemp(path, O_CLOEXEC);
        path_ = path;
        if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes_)) != 0) {
            std::perror(path);
            std::abort();
        }
        void* const memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (memory == MAP_FAILED) {
            std::abort();
        }
        base_ = static_cast<uint8_t*>(memory);
    }
    ~ShmBuffer() override {
        munmap(base_, bytes_);
        unlink(path_.c_str());
    }
    ShmBuffer(const ShmBuffer&) = delete;
    ShmBuffer& operator=(const ShmBuffer&) = delete;

    MemoryRegion region() const override {
        return {MemType::DRAM, reinterpret_cast<uint64_t>(base_ + kBefore), size(), 0, {}};
    }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        std::memcpy(base_ + kBefore + offset, bytes.data(), bytes.size());
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        std::memcpy(bytes.data(), base_ + kBefore + offset, bytes.size());
    }
    const std::string& path() const { return path_; }

  private:
    static constexpr uint64_t kBefore = 24;
    const uint64_t bytes_;
    std::string path_;
    uint8_t* base_ = nullptr;
};

}  // namespace nixl::hf3fs
