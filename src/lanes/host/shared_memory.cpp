// See shared_memory.h.
#include "lanes/host/shared_memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace nixl::peer {

namespace {

constexpr uint64_t kBlock = 512;  // unit of st_blocks

struct Closer {
    void operator()(FILE* file) const { std::fclose(file); }
    void operator()(DIR* folder) const { closedir(folder); }
};

}  // namespace

std::string whyNotMappable(int fd) {
    struct stat info {};
    struct statfs system {};
    const int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &info) < 0 || fstatfs(fd, &system) < 0 || !S_ISREG(info.st_mode)) {
        return "its file is no memory file";
    }
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        return "its file lacks F_SEAL_SHRINK: use nixl.alloc";
    }
    if (system.f_type != TMPFS_MAGIC) {
        // Its owner could punch holes, and there may be no page to fill them again.
        return "its file is of huge pages, which can be taken away from those who map it";
    }
    if ((seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) {
        return "its file is sealed against writing";
    }
    if (static_cast<uint64_t>(info.st_blocks) * kBlock < static_cast<uint64_t>(info.st_size)) {
        return "its file has holes: allocate it whole (posix_fallocate), or use nixl.alloc";
    }
    return {};
}

SharedMemory::SharedMemory() {
    const std::unique_ptr<FILE, Closer> file(std::fopen("/proc/self/maps", "re"));
    char* line = nullptr;
    size_t room = 0;
    while (file && getline(&line, &room, file.get()) > 0) {
        unsigned long long begin = 0;
        unsigned long long end = 0;
        unsigned long long offset = 0;
        unsigned long long inode = 0;
        unsigned major_number = 0;
        unsigned minor_number = 0;
        char rights[5] = "";
        // NOLINTNEXTLINE(cert-err34-c,bugprone-unchecked-string-to-number-conversion)
        if (std::sscanf(line, "%llx-%llx %4s %llx %x:%x %llu", &begin, &end, rights, &offset,
                        &major_number, &minor_number, &inode) == 7) {
            areas_.push_back({begin, end, offset, makedev(major_number, minor_number), inode,
                              rights[3] == 's' && inode != 0,
                              rights[0] == 'r' && rights[1] == 'w'});
        }
    }
    std::free(line);  // NOLINT: getline allocates
}

void SharedMemory::listDescriptors() {
    listed_ = true;
    const std::unique_ptr<DIR, Closer> folder(opendir("/proc/self/fd"));
    while (folder) {
        const dirent* const entry = readdir(folder.get());  // NOLINT(concurrency-mt-unsafe)
        if (entry == nullptr) {
            return;
        }
        char* end = nullptr;
        const long number = std::strtol(entry->d_name, &end, 10);
        struct stat info {};
        if (*end == '\0' && fstat(static_cast<int>(number), &info) == 0 && S_ISREG(info.st_mode)) {
            descriptors_.emplace(FileKey(info.st_dev, info.st_ino), static_cast<int>(number));
        }
    }
}

SharedMemory::File SharedMemory::open(const FileKey& key) {
    if (!listed_) {
        listDescriptors();
    }
    File file;
    file.reason = "its process has no open descriptor of the shared memory: use nixl.alloc";
    const auto [first, last] = descriptors_.equal_range(key);
    for (auto at = first; at != last; ++at) {
        base::Fd fd(fcntl(at->second, F_DUPFD_CLOEXEC, 0));
        struct stat info {};
        // The number may have changed hands since it was listed.
        if (!fd || fstat(fd.get(), &info) < 0 || info.st_dev != key.first ||
            info.st_ino != key.second) {
            continue;
        }
        if ((fcntl(fd.get(), F_GETFL) & O_ACCMODE) != O_RDWR) {
            file.reason = "its process has the shared memory open for reading only";
            continue;
        }
        file.reason = whyNotMappable(fd.get());
        if (file.reason.empty() && files_.size() == kMaxMapFiles) {
            file.reason = "its regions lie in too many files to be offered at once";
        } else if (file.reason.empty()) {
            file.index = static_cast<int>(files_.size());
            files_.push_back(std::move(fd));
        }
        break;
    }
    return file;
}

const SharedMemory::File& SharedMemory::fileOf(const Area& area) {
    const FileKey key(area.device, area.inode);
    const auto found = known_.find(key);
    return found != known_.end() ? found->second : known_.emplace(key, open(key)).first->second;
}

SharedMemory::Found SharedMemory::find(uint64_t address, uint64_t size) {
    Found found;
    const uint64_t end = address + size;
    uint64_t covered = 0;
    auto area = std::upper_bound(areas_.begin(), areas_.end(), address,
                                 [](uint64_t at, const Area& one) { return at < one.end; });
    for (; area != areas_.end() && area->begin < end; ++area) {
        std::string why;
        int index = -1;
        if (!area->shared) {
            why = "memory is not shareable: use nixl.alloc";
        } else if (!area->writable) {
            why = "memory is not writable in its process";
        } else {
            const File& file = fileOf(*area);
            why = file.reason;
            index = file.index;
        }
        if (index < 0) {
            found.reason = why;
            continue;
        }
        const uint64_t begin = std::max(address, area->begin);
        const uint64_t length = std::min(end, area->end) - begin;
        const uint64_t offset = area->offset + (begin - area->begin);
        covered += length;
        MapPiece* const last = found.pieces.empty() ? nullptr : &found.pieces.back();
        if (last != nullptr && last->address + last->size == begin &&
            last->offset + last->size == offset && last->file == static_cast<uint32_t>(index)) {
            last->size += length;
        } else {
            found.pieces.push_back({begin, length, offset, static_cast<uint32_t>(index)});
        }
    }
    if (covered < size && found.reason.empty()) {
        found.reason = "part of it is not mapped in its process";
    }
    if (found.pieces.size() > kMaxMapPieces) {
        found.reason = "it lies in " + std::to_string(found.pieces.size()) +
                       " pieces of shared memory, more than can be offered";
        found.pieces.clear();
    }
    return found;
}

}  // namespace nixl::peer
