// See system.h.
#include "hicache/system.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nixl::hicache {

Result<base::Fd> openFile(const std::string& path, int flags, unsigned mode) {
    int fd = -1;
    do {
        fd = open(path.c_str(), flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return systemError("open", path, errno);
    }
    base::Fd file(fd);
    if ((flags & O_CREAT) != 0 && (flags & O_EXCL) != 0 && fchmod(fd, mode) != 0) {
        return systemError("set the rights of", path, errno);
    }
    return file;
}

Status makeDirectories(const std::string& path, unsigned mode) {
    const auto make = [mode](const std::string& folder) {
        return mkdir(folder.c_str(), mode) == 0 ? chmod(folder.c_str(), mode) : -1;
    };
    for (size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
        make(path.substr(0, at));
    }
    if (make(path) == 0) {
        return {};
    }
    const int error = errno;
    struct stat info {};
    if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
        return {};
    }
    return systemError("make directory", path, error);
}

Status syncFolder(const std::string& path) {
    auto fd = openFile(path, O_RDONLY | O_DIRECTORY);
    if (!fd.ok()) {
        return fd.status();
    }
    if (fsync(fd.value().get()) != 0 && errno != EINVAL && errno != ENOTSUP) {
        return systemError("fsync", path, errno);
    }
    return {};
}

std::string parentOf(const std::string& path) {
    const size_t slash = path.find_last_of('/');
    return slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
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
