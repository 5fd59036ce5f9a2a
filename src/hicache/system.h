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

inline constexpr unsigned kFileMode = 0600;
// Folders may be entered by whoever may read the files in them.
constexpr unsigned folderMode(unsigned file_mode) {
    return file_mode | (file_mode & 0444) >> 2;
}

// A file that is made (O_EXCL) has these rights, whatever the umask.
Result<FileDescriptor> openFile(const std::string& path, int flags, unsigned mode = kFileMode);
// Like mkdir -p; what is made has these rights.
Status makeDirectories(const std::string& path, unsigned mode = folderMode(kFileMode));
// The names in it are on the disk then; nothing where a file system knows no such thing.
Status syncFolder(const std::string& path);
std::string parentOf(const std::string& path);
Status writeAll(int fd, const std::string& path, const void* data, size_t size, uint64_t offset);
// Bytes read: fewer than asked only at the end of the file.
Result<size_t> readAll(int fd, const std::string& path, void* data, size_t size, uint64_t offset);
// 16 hexadecimal digits nobody else has.
std::string randomName();
uint64_t wallClockNanoseconds() noexcept;

}  // namespace nixl::hicache
