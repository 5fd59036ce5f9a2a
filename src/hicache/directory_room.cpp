// Room: evicting, erasing and clearing, and giving bytes back to the file system. See directory.h.
#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hicache/directory.h"

namespace nixl::hicache {
namespace {

// Whether the file system took the bytes back.
Status punch(const std::string& path, uint64_t offset, uint64_t length) {
    auto fd = openFile(path, O_WRONLY);
    if (!fd.ok()) {
        return fd.status();
    }
    const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    while (fallocate(fd.value().get(), mode, static_cast<off_t>(offset),
                     static_cast<off_t>(length)) != 0) {
        if (errno != EINTR) {
            return systemError("punch a hole in", path, errno);
        }
    }
    return {};
}

// Whether a block can be read at all; what is only short of descriptors or memory counts as such.
bool readable(const std::string& path, const Item& item) {
    const auto passes = [](const Status& status) {
        const int error = status.systemErrno();
        return error == EMFILE || error == ENFILE || error == ENOMEM;
    };
    auto fd = openFile(path, O_RDONLY);
    if (!fd.ok()) {
        return passes(fd.status());
    }
    std::string buffer(std::min<uint64_t>(item.length, 1U << 20), '\0');
    for (uint64_t done = 0; done < item.length; done += buffer.size()) {
        const size_t size = std::min<uint64_t>(buffer.size(), item.length - done);
        auto got = readAll(fd.value().get(), path, buffer.data(), size, item.offset + done);
        if (!got.ok() || got.value() != size) {
            return !got.ok() && passes(got.status());
        }
    }
    return true;
}

}  // namespace

void Directory::release(const Entry& entry) {
    release(entry.segment, entry.offset, entry.length);
}

void Directory::release(uint32_t segment, uint64_t offset, uint64_t length) {
    Segment& from = segments_[segment];
    const uint64_t bytes = alignUp(length);
    if (options_.externalSegments || noHoles_.load(std::memory_order_relaxed) || bytes == 0) {
        return;  // compaction gets the room back
    }
    from.punched += bytes;
    const bool follows = !freed_.empty() && freed_.back().path == from.path &&
                         freed_.back().offset + freed_.back().length == offset;
    if (follows) {
        freed_.back().length += bytes;
    } else {
        freed_.push_back({from.path, offset, bytes});
    }
}

Status Directory::makeRoom(uint64_t bytes) {
    if (options_.maxBytes == 0) {
        return {};
    }
    if (bytes > options_.maxBytes) {
        return Status::notAllowed(path_ + ": blocks of " + std::to_string(bytes) +
                                  " bytes at once are above the cap of " +
                                  std::to_string(options_.maxBytes));
    }
    // With what other threads are about to store: what is too much then goes at their commit.
    const uint64_t wanted = std::min(bytes + reserved_, options_.maxBytes);
    return trimTo(options_.maxBytes - wanted);
}

Status Directory::trimToCap() {
    return options_.maxBytes == 0 ? Status() : trimTo(options_.maxBytes);
}

Status Directory::trimTo(uint64_t goal) {
    if (stats_.liveBytes <= goal) {
        return {};
    }
    return trim(goal - std::min(goal, options_.maxBytes / kEvictionSlack));
}

Status Directory::trim(uint64_t goal) {
    uint32_t id = index_.oldest();
    for (uint32_t seen = 0; id != kNone && stats_.liveBytes > goal && seen < kEvictionScan;) {
        const uint32_t newer = index_.at(id).newer;
        const Entry& entry = index_.at(id);
        if (!ownedEntry(entry)) {  // its owner trims to the cap in maintain()
            ++seen;
        } else {
            eraseRecord(id);
            release(entry);
            ++stats_.evictions;
            stats_.evictedBytes += alignUp(entry.length);
            drop(id);
        }
        id = newer;
    }
    // Said in the logs before any byte goes: a reader that re-checks sees a miss.
    return flushLogs();
}

Result<uint64_t> Directory::shrink(uint64_t bytes) {
    Freed freed;
    Status status;
    uint64_t gone = 0;
    {
        const MutexLock lock(mutex_);
        refresh();
        NIXL_RETURN_IF_ERROR(beginClear());
        const uint64_t before = stats_.liveBytes;
        status = trim(bytes);
        gone = before - stats_.liveBytes;
        freed = takeFreed();
    }
    reclaim(freed);
    if (!status.ok() && status.systemErrno() != ENOSPC) {
        return status;
    }
    return gone;
}

Directory::Freed Directory::takeFreed() {
    Freed freed;
    if (std::exchange(emptied_, false)) {
        dropEmptySegments(freed.paths);
    }
    freed.holes = std::exchange(freed_, {});
    return freed;
}

// The gaps between live blocks, up to the first extent that is being written.
std::vector<Directory::Hole> Directory::deadPlaces() {
    std::vector<Hole> holes = std::exchange(freed_, {});
    if (options_.externalSegments || noHoles_.load(std::memory_order_relaxed)) {
        return holes;
    }
    std::unordered_map<uint32_t, std::vector<std::pair<uint64_t, uint64_t>>> live;
    for (uint32_t i = 0; i < segments_.size(); ++i) {
        const Segment& segment = segments_[i];
        if (!segment.dropped && logs_[segment.log].owned &&
            segment.live + segment.punched < segment.size) {
            live[i];
        }
    }
    for (uint32_t id = 0; !live.empty() && id < index_.capacity(); ++id) {
        const Entry& entry = index_.at(id);
        const auto wanted = entry.used ? live.find(entry.segment) : live.end();
        if (wanted != live.end()) {
            wanted->second.emplace_back(entry.offset, entry.offset + alignUp(entry.length));
        }
    }
    for (auto& [index, extents] : live) {
        Segment& segment = segments_[index];
        const uint64_t end = segment.pending != 0 ? segment.pendingFrom : segment.size;
        std::sort(extents.begin(), extents.end());
        extents.emplace_back(end, end);
        uint64_t at = 0;
        uint64_t gaps = 0;
        for (const auto& [from, to] : extents) {
            if (from > at && at < end) {
                holes.push_back({segment.path, at, std::min(from, end) - at});
                gaps += std::min(from, end) - at;
            }
            at = std::max(at, to);
        }
        segment.punched = std::max(segment.punched, gaps);
    }
    return holes;
}

uint64_t Directory::reclaimDead() {
    Freed freed;
    {
        const MutexLock lock(mutex_);
        freed = takeFreed();
        std::vector<Hole> dead = deadPlaces();
        freed.holes.insert(freed.holes.end(), dead.begin(), dead.end());
    }
    return reclaim(freed);
}

void Directory::dropEmptySegments(std::vector<std::string>& paths) {
    for (uint32_t i = 0; i < segments_.size(); ++i) {
        Segment& segment = segments_[i];
        if (segment.dropped || segment.live != 0 || segment.pending != 0 || segment.size == 0 ||
            !logs_[segment.log].owned) {
            continue;
        }
        if (i == current_) {
            current_ = kNone;
        }
        segment.dropped = true;
        encode({.type = RecordType::DROP, .key = {}, .segment = segment.number},
               logs_[segment.log].pending);
        logs_[segment.log].segments.erase(segment.number);
        (options_.externalSegments ? droppedSegments_ : paths).push_back(segment.path);
    }
    const Status status = flushLogs();
    static_cast<void>(status);  // a segment that is named but missing is a miss
}

uint64_t Directory::reclaim(const Freed& freed) {
    if (options_.externalSegments) {
        return 0;
    }
    uint64_t bytes = 0;
    const std::set<std::string> gone(freed.paths.begin(), freed.paths.end());
    for (const std::string& path : gone) {
        struct stat info {};
        const bool there = ::stat(path.c_str(), &info) == 0;
        if (unlink(path.c_str()) == 0 && there) {
            bytes += static_cast<uint64_t>(info.st_blocks) * 512;
        }
    }
    for (const Hole& hole : freed.holes) {
        if (gone.contains(hole.path)) {
            continue;
        }
        const Status status = punch(hole.path, hole.offset, hole.length);
        bytes += status.ok() ? hole.length : 0;
        if (status.systemErrno() == EOPNOTSUPP) {
            noHoles_.store(true, std::memory_order_relaxed);
        }
    }
    return bytes;
}

std::vector<std::string> Directory::takeDroppedSegments() {
    const MutexLock lock(mutex_);
    return std::exchange(droppedSegments_, {});
}

bool Directory::forgetItem(const Item& item) {
    const uint32_t id = index_.find(item.key);
    if (id == kNone || index_.at(id).version != item.version) {
        return false;
    }
    if (ownedEntry(index_.at(id))) {
        eraseRecord(id);
    }
    drop(id);
    return true;
}

void Directory::forget(Batch& batch, uint16_t self) {
    const MutexLock lock(mutex_);
    for (const Item& item : batch.items) {
        if (item.directory == self && item.state == ItemState::CORRUPT) {
            ++stats_.corruptBlocks;
            forgetItem(item);
        }
    }
    const Status status = flushLogs();
    static_cast<void>(status);  // found corrupt again after a restart, and a miss again
}

void Directory::probe(Batch& batch, uint16_t self) {
    if (options_.externalSegments) {
        return;  // what an object store fails today it may give tomorrow
    }
    std::vector<Item*> lost;
    for (Item& item : batch.items) {
        if (item.directory == self && item.state == ItemState::FAILED && !item.held &&
            !readable(segmentPath(item.segment), item)) {
            lost.push_back(&item);
        }
    }
    if (lost.empty()) {
        return;
    }
    const MutexLock lock(mutex_);
    for (Item* item : lost) {
        forgetItem(*item);
        item->state = ItemState::MISS;
    }
    const Status status = flushLogs();
    static_cast<void>(status);
}

Status Directory::erase(const std::vector<Fingerprint>& keys) {
    Freed freed;
    Status status;
    {
        const MutexLock lock(mutex_);
        refresh();
        for (const Fingerprint& key : keys) {
            const uint32_t id = index_.find(key);
            if (id == kNone) {
                continue;
            }
            const Entry& entry = index_.at(id);
            if (ownedEntry(entry)) {
                eraseRecord(id);
                release(entry);
            }
            drop(id);
        }
        status = flushLogs();
        freed = takeFreed();
    }
    reclaim(freed);
    return status;
}

Status Directory::beginClear() {
    if (options_.readOnly) {
        return Status::notAllowed(path_ + ": opened for reading only");
    }
    if (index_.size() == 0 && segments_.empty()) {
        return {};
    }
    adoptLogs();
    return ensureWriter();
}

Status Directory::clearOwners(const std::vector<std::string>& owners) {
    Freed freed;
    Status status;
    {
        const MutexLock lock(mutex_);
        refresh();
        NIXL_RETURN_IF_ERROR(beginClear());
        if (index_.size() == 0) {
            return {};
        }
        const uint64_t version = nextVersion();
        std::string records;
        for (const std::string& owner : owners) {
            encode(clearOwner(owner, version), records);
            applyClearOwner(owner, version);
        }
        status = append(logs_[writer_], records);
        freed = takeFreed();
        if (status.systemErrno() == ENOSPC && reclaim(freed) != 0) {
            status = append(logs_[writer_], records);
        }
        if (status.ok() && options_.durable) {
            status = logs_[writer_].file->sync();
        }
    }
    reclaim(freed);
    return status;
}

Status Directory::clear() {
    Freed freed;
    Status status;
    {
        const MutexLock lock(mutex_);
        refresh();
        NIXL_RETURN_IF_ERROR(beginClear());
        if (index_.size() == 0 && segments_.empty()) {
            return {};
        }
        const uint64_t version = nextVersion();
        std::string record;
        encode({.type = RecordType::CLEAR, .key = {}, .version = version}, record);
        logs_[writer_].pending += record;
        status = flushLogs();
        applyClear(version);
        dropEmptySegments(freed.paths);
        if (status.systemErrno() == ENOSPC) {  // the segments first, then there is room to say it
            reclaim(freed);
            logs_[writer_].pending = record;
            status = flushLogs();
        }
        if (status.ok() && options_.durable) {
            status = logs_[writer_].file->sync();
        }
    }
    reclaim(freed);
    return status;
}

}  // namespace nixl::hicache
