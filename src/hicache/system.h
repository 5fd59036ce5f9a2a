// Small owners and loops around system calls: descriptors (CLOEXEC), whole reads and writes that
// retry EINTR, messages with the reason. Values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nixl/error.h"

namespace nixl::hicache {

class FileDescriptor {
  public:
    FileDescriptor() = default;
    explicit FileDescriptor(int fd) : fd_(fd) {}
    FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
    FileDescriptor& operator=(FileDescriptor&& other) noexcept {
        reset(other.release());
        return *this;
    }
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    ~FileDescriptor() { reset(-1); }

    int get() const noexcept { return fd_; }
    bool valid() const noexcept { return fd_ >= 0; }
    void reset(int fd) noexcept;
    int release() noexcept {
        const int fd = fd_;
        fd_ = -1;
        return fd;
    }

  private:
    int fd_ = -1;
};

// "WHAT PATH: reason", with the errno in the status.
Status systemError(std::string_view what, const std::string& path, int error);

Result<FileDescriptor> openFile(const std::string& path, int flags, unsigned mode = 0644);
// Like mkdir -p.
Status makeDirectories(const std::string& path);
Status writeAll(int fd, const std::string& path, const void* data, size_t size, uint64_t offset);
// Bytes read: fewer than asked only at the end of the file.
Result<size_t> readAll(int fd, const std::string& path, void* data, size_t size, uint64_t offset);
// 16 hexadecimal digits nobody else has.
std::string randomName();
uint64_t wallClockNanoseconds() noexcept;

}  // namespace nixl::hicache
