// Small owners and loops around system calls: descriptors (CLOEXEC), whole reads and writes that
// retry EINTR, messages with the reason. Values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nixl/error.h"

#include "base/descriptor.h"
#include "base/system_error.h"

namespace nixl::hicache {

using base::systemError;

inline constexpr unsigned kFileMode = 0600;
// Folders may be entered by whoever may read the files in them.
constexpr unsigned folderMode(unsigned file_mode) {
    return file_mode | (file_mode & 0444) >> 2;
}

// A file that is made (O_EXCL) has these rights, whatever the umask.
Result<base::Fd> openFile(const std::string& path, int flags, unsigned mode = kFileMode);
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
