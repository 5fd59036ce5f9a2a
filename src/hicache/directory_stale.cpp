// What killed writers never finished: found by age and owner, and removed. See directory.h.
#include <cerrno>
#include <string>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hicache/directory.h"

namespace nixl::hicache {
namespace {

constexpr uint64_t kCollectSeconds = 60;  // not more often

// Old, a file, and made by the user of this process (root tidies for all).
bool isStale(const std::string& path, uint64_t now) {
    struct stat info {};
    return lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
           (geteuid() == 0 || info.st_uid == geteuid()) &&
           static_cast<int64_t>(now / kSecond) - info.st_mtim.tv_sec > kStaleSeconds;
}

// Whoever writes a log, also a new one, holds its lock.
bool isLocked(const std::string& path) {
    auto fd = openFile(path, O_RDONLY);
    return !fd.ok() || flock(fd.value().get(), LOCK_EX | LOCK_NB) != 0;
}

template <typename F>
void forEachName(const std::string& folder, F&& what) {
    DIR* listing = opendir(folder.c_str());
    if (listing == nullptr) {
        return;
    }
    while (const dirent* entry = readdir(listing)) {
        what(std::string(entry->d_name));
    }
    closedir(listing);
}

}  // namespace

void Directory::collectStale() {
    const uint64_t now = wallClockNanoseconds();
    if (now - collected_ < kCollectSeconds * kSecond) {
        return;
    }
    collected_ = now;
    forEachName(root_, [&](const std::string& name) {
        const std::string path = root_ + "/" + name;
        if (name.starts_with("format.") && name != "format.copy" && isStale(path, now)) {
            unlink(path.c_str());
        }
    });
    forEachName(root_ + "/logs", [&](const std::string& name) {
        const std::string path = root_ + "/logs/" + name;
        if (name.ends_with(".new") && isStale(path, now) && !isLocked(path)) {
            unlink(path.c_str());
        }
    });
    if (options_.externalSegments) {
        return;
    }
    // Segments of a log that is gone; those that a log does not name go with its adoption.
    forEachName(root_ + "/segments", [&](const std::string& name) {
        const std::string path = root_ + "/segments/" + name;
        const std::string log = root_ + "/logs/" + name.substr(0, name.rfind('-')) + ".log";
        struct stat info {};
        if (name.find('-') != std::string::npos && isStale(path, now) &&
            lstat(log.c_str(), &info) != 0 && errno == ENOENT) {
            unlink(path.c_str());
        }
    });
}

}  // namespace nixl::hicache
