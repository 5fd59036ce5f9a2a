// See system.h.
#include "hicache/system.h"

#include <cerrno>
#include <cstdio>
#include <ctime>
#include <system_error>

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nixl::hicache {

void FileDescriptor::reset(int fd) noexcept {
    if (fd_ >= 0) {
        close(fd_);
    }
    fd_ = fd;
}

Status systemError(std::string_view what, const std::string& path, int error) {
    return Status::backend(std::string(what) + " " + path + ": " +
                               std::error_code(error, std::generic_category()).message(),
                           error);
}

Result<FileDescriptor> openFile(const std::string& path, int flags, unsigned mode) {
    int fd = -1;
    do {
        fd = open(path.c_str(), flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return systemError("open", path, errno);
    }
    return FileDescriptor(fd);
}

Status makeDirectories(const std::string& path) {
    for (size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
        mkdir(path.substr(0, at).c_str(), 0777);
    }
    if (mkdir(path.c_str(), 0777) == 0) {
        return {};
    }
    const int error = errno;
    struct stat info {};
    if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
        return {};
    }
    return systemError("make directory", path, error);
}

Status writeAll(int fd, const std::string& path, const void* data, size_t size, uint64_t offset) {
    const char* from = static_cast<const char*>(data);
    while (size > 0) {
        const ssize_t done = pwrite(fd, from, size, static_cast<off_t>(offset));
        if (done < 0) {
            if (errno == EINTR) {
                continue;
            }
            return systemError("write", path, errno);
        }
        if (done == 0) {
            return systemError("write", path, ENOSPC);
        }
        from += done;
        offset += static_cast<uint64_t>(done);
        size -= static_cast<size_t>(done);
    }
    return {};
}

Result<size_t> readAll(int fd, const std::string& path, void* data, size_t size, uint64_t offset) {
    char* to = static_cast<char*>(data);
    size_t total = 0;
    while (total < size) {
        const ssize_t done =
            pread(fd, to + total, size - total, static_cast<off_t>(offset + total));
        if (done < 0) {
            if (errno == EINTR) {
                continue;
            }
            return systemError("read", path, errno);
        }
        if (done == 0) {
            break;
        }
        total += static_cast<size_t>(done);
    }
    return total;
}

std::string randomName() {
    uint64_t value = 0;
    if (getrandom(&value, sizeof(value), 0) != sizeof(value)) {
        value = wallClockNanoseconds() * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(getpid());
    }
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
    return text;
}

uint64_t wallClockNanoseconds() noexcept {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace nixl::hicache
