// What the tests of the GUSLI backend share: loop devices, files as devices, a backend over a list
// of both. Owned by each test; one thread.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "gusli_backend.h"
#include "testing/buffers.h"
#include "testing/harness.h"

namespace nixl::gusli {

// A folder that goes away with its files.
class TempFolder {
  public:
    TempFolder() : path_(std::filesystem::temp_directory_path() / "nixl_gusli_XXXXXX") {
        if (mkdtemp(path_.data()) == nullptr) {
            std::abort();
        }
    }
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

// A block device over a sparse file.
class LoopDevice {
  public:
    explicit LoopDevice(uint64_t bytes, unsigned sector = 512) {
        const std::string file = folder_ / "disk";
        const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        const bool made = fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0;
        close(fd);
        path_ = made ? command("losetup --direct-io=on --sector-size " + std::to_string(sector) +
                               " --find --show " + file)
                     : "";
    }
    ~LoopDevice() {
        if (!path_.empty()) {
            command("losetup -d " + path_);
        }
    }
    LoopDevice(const LoopDevice&) = delete;
    LoopDevice& operator=(const LoopDevice&) = delete;

    // Empty where none can be made (no root, a container without /dev/loop-control).
    const std::string& path() const { return path_; }
    static constexpr const char* kNone = "no loop device can be made here (losetup failed)";

  private:
    static std::string command(const std::string& line) {
        std::string out;
        FILE* const pipe = popen((line + " 2>/dev/null").c_str(), "re");
        std::array<char, 256> piece{};
        while (pipe != nullptr && fgets(piece.data(), piece.size(), pipe) != nullptr) {
            out += piece.data();
        }
        const bool good = pipe != nullptr && pclose(pipe) == 0;
        while (!out.empty() && out.back() == '\n') {
            out.pop_back();
        }
        return good ? out : "";
    }

    TempFolder folder_;
    std::string path_;
};

// A range of a block device, or a file that is a device of its own.
class BlockBuffer : public testkit::Buffer {
  public:
    BlockBuffer(const std::string& path, uint64_t id, uint64_t offset, uint64_t size, bool own)
        : Buffer(size), id_(id), offset_(offset), own_(own) {
        fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd_ < 0 ||
            (own && (ftruncate(fd_, 0) != 0 || ftruncate(fd_, static_cast<off_t>(size)) != 0))) {
            std::perror(path.c_str());
            std::abort();
        }
    }
    ~BlockBuffer() override { close(fd_); }
    BlockBuffer(const BlockBuffer&) = delete;
    BlockBuffer& operator=(const BlockBuffer&) = delete;

    MemoryRegion region() const override { return {MemType::BLOCK, offset_, size(), id_, {}}; }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        if (pwrite(fd_, bytes.data(), bytes.size(), at(offset)) !=
                static_cast<ssize_t>(bytes.size()) ||
            fdatasync(fd_) != 0) {
            std::perror("write of a test device");
            std::abort();
        }
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
        if (pread(fd_, bytes.data(), bytes.size(), at(offset)) !=
            static_cast<ssize_t>(bytes.size())) {
            std::perror("read of a test device");
            std::abort();
        }
    }
    bool truncate(uint64_t size) override {
        return own_ && ftruncate(fd_, static_cast<off_t>(size)) == 0;
    }

  private:
    off_t at(uint64_t offset) const { return static_cast<off_t>(offset_ + offset); }

    const uint64_t id_;
    const uint64_t offset_;
    const bool own_;
    int fd_ = -1;
};

constexpr uint64_t kMib = 1 << 20;
constexpr uint64_t kBlock = 4096;

// A backend over devices that each test lists, and memory to move.
class DeviceTest : public testing::Test {
  protected:
    static testkit::Subject subject(const std::string& lines,
                                    const std::map<std::string, std::string>& more) {
        testkit::Subject made("Gusli", "GUSLI", testkit::Subject::STORAGE);
        made.table = &kPluginTable;
        made.parameters = more;
        made.parameters["config_file"] = "version=1\n" + lines;
        return made;
    }
    // A backend over these devices.
    testkit::Side& side(const std::string& lines,
                        const std::map<std::string, std::string>& more = {}) {
        side_.reset();  // first, for there is one client
        side_ = std::make_unique<testkit::Side>(subject(lines, more), "test-agent");
        return *side_;
    }
    // The path of a sparse file.
    std::string file(const std::string& name, uint64_t bytes) {
        const std::string path = folder_ / name;
        std::ofstream(path).close();
        std::filesystem::resize_file(path, bytes);
        return path;
    }
    // The reason why blocks of device 1 cannot be registered.
    std::string refusal(const std::string& lines, uint64_t offset = 0, uint64_t size = kBlock) {
        auto memory = side(lines).backend().registerMemory({MemType::BLOCK, offset, size, 1, {}});
        return memory.ok() ? "none" : memory.status().message();
    }
    std::unique_ptr<testkit::Registered> blocks(
        const std::string& path, uint64_t id, uint64_t offset, uint64_t size, bool own = false) {
        return std::make_unique<testkit::Registered>(
            *side_, std::make_unique<BlockBuffer>(path, id, offset, size, own));
    }
    std::unique_ptr<testkit::Registered> memory(uint64_t size, uint64_t misalign = 0) {
        return std::make_unique<testkit::Registered>(*side_,
                                                     testkit::makeHostBuffer(size, misalign));
    }
    Status prepared(OpType op,
                    testkit::Registered& near,
                    testkit::Registered& far,
                    const testkit::Piece& piece) {
        testkit::Job job(op, near.region(), far.region(), side_->peer(true));
        return job.add(piece).prepare(side_->backend());
    }

    TempFolder folder_;
    std::unique_ptr<testkit::Side> side_;
};

}  // namespace nixl::gusli
