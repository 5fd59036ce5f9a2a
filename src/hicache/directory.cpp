// Opening a directory, look-ups, figures. See directory.h.
#include "hicache/directory.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "hicache/format.h"

namespace nixl::hicache {
namespace {}  // namespace

Directory::Directory(std::string path, const DirectoryOptions& options)
    : path_(std::move(path)), root_(path_ + "/.nixl-packed"), options_(options), owners_(1) {}

Directory::~Directory() {
    const MutexLock lock(mutex_);
    const Status status = flushLogs();  // touches and superseded blocks: nothing lost if it fails
    static_cast<void>(status);
}

Result<std::unique_ptr<Directory>> Directory::open(const std::string& path,
                                                   const DirectoryOptions& options) {
    std::unique_ptr<Directory> directory(new Directory(path, options));
    NIXL_RETURN_IF_ERROR(directory->start());
    return directory;
}

Status Directory::start() {
    NIXL_RETURN_IF_ERROR(makeFolders());
    const MutexLock lock(mutex_);
    refresh();
    if (!options_.readOnly) {
        adoptLogs();
        collectStale();
    }
    if (options_.maxBytes != 0) {
        orderByAge();
    }
    return {};
}

Status Directory::makeFolders() {
    if (!options_.readOnly) {
        const unsigned mode = folderMode(options_.fileMode);
        NIXL_RETURN_IF_ERROR(makeDirectories(root_ + "/logs", mode));
        NIXL_RETURN_IF_ERROR(makeDirectories(root_ + "/segments", mode));
    }
    NIXL_RETURN_IF_ERROR(loadFormat());
    return options_.durable && !options_.readOnly ? syncFolders() : Status();
}

// Each name in its folder, up to the root: somebody else may have made them without.
Status Directory::syncFolders() const {
    for (const std::string& folder : {root_ + "/logs", root_ + "/segments", root_, path_}) {
        NIXL_RETURN_IF_ERROR(syncFolder(folder));
    }
    for (std::string folder = path_; folder != "/" && folder != ".";) {
        folder = parentOf(folder);
        const Status status = syncFolder(folder);
        if (!status.ok() && status.systemErrno() != EACCES) {  // then it is not of our making
            return status;
        }
    }
    return {};
}

Status Directory::loadFormat() {
    const auto loaded = loadSecret(
        root_, {.secret = secret_, .readOnly = options_.readOnly, .fileMode = options_.fileMode});
    if (!loaded.ok()) {
        return loaded.status();
    }
    // Readers hash with it: written only where it is news.
    if (secret_.low != loaded.value().low || secret_.high != loaded.value().high) {
        secret_ = loaded.value();
    }
    return {};
}

void Directory::touch(uint32_t id) {
    index_.touch(id);
    if (options_.maxBytes == 0 || writer_ == kNone) {
        return;
    }
    const uint64_t now = wallClockNanoseconds();
    const auto seconds = static_cast<uint32_t>(now / kSecond);
    Entry& entry = index_.at(id);
    if (seconds >= entry.touched + kTouchSeconds) {
        entry.touched = seconds;
        encode({.type = RecordType::TOUCH, .key = entry.key, .version = now},
               logs_[writer_].pending);
    }
}

void Directory::find(Batch& batch, uint16_t self) {
    const MutexLock lock(mutex_);
    refresh();
    for (Item& item : batch.items) {
        if (item.directory != self) {
            continue;
        }
        item.state = ItemState::MISS;
        const uint32_t id = index_.find(item.key);
        if (id == kNone || segments_[index_.at(id).segment].dropped) {
            continue;
        }
        const Entry& entry = index_.at(id);
        item.entry = id;
        item.version = entry.version;
        item.offset = entry.offset;
        item.length = entry.length;
        item.segment = entry.segment;
        item.checksum = entry.checksum;
        item.state = ItemState::HIT;
        touch(id);
    }
    if (writer_ != kNone && logs_[writer_].pending.size() > (64U << 10)) {
        const Status status = flushLogs();  // recency only: a full disk may lose it
        static_cast<void>(status);
    }
}

size_t Directory::containsPrefix(const Batch& batch) {
    const MutexLock lock(mutex_);
    refresh();
    size_t count = 0;
    for (const Item& item : batch.items) {
        const uint32_t id = item.directory == kNoDirectory ? kNone : index_.find(item.key);
        if (id == kNone || segments_[index_.at(id).segment].dropped) {
            break;
        }
        ++count;
    }
    return count;
}

void Directory::confirm(Batch& batch, uint16_t self) {
    const MutexLock lock(mutex_);
    refresh();
    for (Item& item : batch.items) {
        if (item.directory != self || item.state != ItemState::HIT) {
            continue;
        }
        const bool there = item.entry < index_.capacity() && index_.at(item.entry).used &&
                           index_.at(item.entry).key == item.key &&
                           index_.at(item.entry).version == item.version &&
                           index_.at(item.entry).segment == item.segment &&
                           index_.at(item.entry).offset == item.offset;
        if (!there) {
            item.state = ItemState::MISS;
        }
    }
}

std::string Directory::segmentPath(uint32_t segment) const {
    const MutexLock lock(mutex_);
    return segment < segments_.size() ? segments_[segment].path : std::string();
}

bool Directory::segmentDropped(uint32_t segment) const {
    const MutexLock lock(mutex_);
    return segment >= segments_.size() || segments_[segment].dropped;
}

DirectoryStats Directory::stats() {
    const MutexLock lock(mutex_);
    DirectoryStats out = stats_;
    for (const Segment& segment : segments_) {
        if (!segment.dropped) {
            ++out.segments;
            out.diskBytes += segment.size - std::min(segment.size, segment.punched);
        }
    }
    for (const Log& log : logs_) {
        if (log.file != nullptr) {
            ++out.writers;
            out.ownedWriters += log.owned ? 1 : 0;
            out.logBytes += log.file->readBytes();
            out.damagedLogBytes += log.file->damagedBytes();
        }
    }
    return out;
}

}  // namespace nixl::hicache
