// See buffers.h.
#include "testing/buffers.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace nixl::testkit {
namespace {

constexpr uint64_t kPage = 4096;

[[noreturn]] void giveUp(const char* what) {
    std::perror(what);
    std::abort();
}

class HostBuffer final : public Buffer {
  public:
    HostBuffer(uint64_t size, uint64_t misalign) : Buffer(size), mapped_(size + misalign + kPage) {
        void* const memory =
            mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            giveUp("test memory");
        }
        base_ = static_cast<uint8_t*>(memory);
        start_ = base_ + misalign;
    }
    ~HostBuffer() override { munmap(base_, mapped_); }

    MemoryRegion region() const override {
        return {MemType::DRAM, reinterpret_cast<uint64_t>(start_), size(), 0, {}};
    }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        std::memcpy(start_ + offset, bytes.data(), bytes.size());
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        std::memcpy(bytes.data(), start_ + offset, bytes.size());
    }

  private:
    const uint64_t mapped_;
    uint8_t* base_ = nullptr;
    uint8_t* start_ = nullptr;
};

class FileBuffer final : public Buffer {
  public:
    FileBuffer(uint64_t size, FileMode mode, const std::string& folder, int open_flags)
        : Buffer(size), mode_(mode) {
        const char* const temporary = std::getenv("TMPDIR");
        path_ = (!folder.empty()        ? folder
                 : temporary != nullptr ? temporary
                                        : "/tmp") +
                "/nixl_place_XXXXXX";
        own_ = mkostemp(path_.data(), O_CLOEXEC);
        if (own_ < 0 || ftruncate(own_, static_cast<off_t>(size)) != 0) {
            giveUp(path_.c_str());
        }
        given_ = mode == FileMode::PATH ? -1 : open(path_.c_str(), O_RDWR | O_CLOEXEC | open_flags);
        metadata_ = mode == FileMode::PATH ? "rw:" + path_ : "";
    }
    ~FileBuffer() override {
        close(own_);
        if (given_ >= 0) {
            close(given_);
        }
        unlink(path_.c_str());
    }

    MemoryRegion region() const override {
        const uint64_t device = mode_ == FileMode::PATH ? 0 : static_cast<uint64_t>(given_);
        return {MemType::FILE, 0, size(), device, metadata_};
    }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        if (pwrite(own_, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(bytes.size())) {
            giveUp("write of a test file");
        }
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        if (pread(own_, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(bytes.size())) {
            giveUp("read of a test file");
        }
    }
    bool truncate(uint64_t size) override { return ftruncate(own_, static_cast<off_t>(size)) == 0; }

  private:
    const FileMode mode_;
    std::string path_;
    std::string metadata_;
    int own_ = -1;    // for the test itself
    int given_ = -1;  // for the backend
};

}  // namespace

std::vector<uint8_t> pattern(uint64_t seed, uint64_t offset, uint64_t size) {
    // Word by word: unoptimised builds fill many megabytes with it.
    const uint64_t first = offset / 8;
    const uint64_t words = (offset + size + 7) / 8 - first;
    std::vector<uint64_t> all(words);
    uint64_t next = (first + 1) * 0x9e3779b97f4a7c15U + seed * 0xbf58476d1ce4e5b9U;
    for (uint64_t& word : all) {
        word = next ^ (next >> 29);
        next += 0x9e3779b97f4a7c15U;
    }
    std::vector<uint8_t> out(size);
    if (size > 0) {
        std::memcpy(out.data(), reinterpret_cast<const uint8_t*>(all.data()) + offset % 8, size);
    }
    return out;
}

void Buffer::fill(uint64_t seed) {
    for (uint64_t offset = 0; offset < size_; offset += step()) {
        write(offset, pattern(seed, offset, std::min(step(), size_ - offset)));
    }
}

void Buffer::clear() {
    const std::vector<uint8_t> zeros(std::min(step(), size_));
    for (uint64_t offset = 0; offset < size_; offset += step()) {
        write(offset, std::span(zeros).first(std::min(step(), size_ - offset)));
    }
}

std::vector<uint8_t> Buffer::bytes(uint64_t offset, uint64_t size) const {
    std::vector<uint8_t> out(size);
    if (size > 0) {
        read(offset, out);
    }
    return out;
}

std::unique_ptr<Buffer> makeHostBuffer(uint64_t size, uint64_t misalign) {
    return std::make_unique<HostBuffer>(size, misalign);
}

std::unique_ptr<Buffer> makeFileBuffer(uint64_t size,
                                       FileMode mode,
                                       const std::string& folder,
                                       int open_flags) {
    return std::make_unique<FileBuffer>(size, mode, folder, open_flags);
}

}  // namespace nixl::testkit
