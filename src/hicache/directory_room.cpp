// Room: evicting, erasing and clearing, and giving bytes back to the file system. See directory.h.
#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "hicache/directory.h"

namespace nixl::hicache {
namespace {

constexpr uint32_t kEvictionScan = 1U << 16;  // entries of others looked past, at most

void punch(const std::string& path, uint64_t offset, uint64_t length) {
    auto fd = openFile(path, O_WRONLY);
    if (fd.ok()) {  // where holes are not supported, compaction gets the room back
        fallocate(fd.value().get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(offset), static_cast<off_t>(length));
    }
}

}  // namespace

Status Directory::evict(uint64_t bytes, std::vector<Hole>& holes) {
    bytes += reserved_;  // what other threads are about to store
    if (options_.maxBytes == 0 || stats_.liveBytes + bytes <= options_.maxBytes) {
        return {};
    }
    if (bytes > options_.maxBytes) {
        return Status::notAllowed(path_ + ": blocks of " + std::to_string(bytes) +
                                  " bytes at once are above the cap of " +
                                  std::to_string(options_.maxBytes));
    }
    // A little more than needed, so that not every call evicts.
    const uint64_t goal = options_.maxBytes - bytes;
    const uint64_t target = goal - std::min(goal, options_.maxBytes / 64);
    uint32_t id = index_.oldest();
    for (uint32_t seen = 0; id != kNone && stats_.liveBytes > target && seen < kEvictionScan;) {
        const uint32_t newer = index_.at(id).newer;
        const Entry& entry = index_.at(id);
        if (!ownedEntry(entry)) {  // its owner trims to the cap in maintain()
            ++seen;
        } else {
            Segment& segment = segments_[entry.segment];
            const uint64_t length = alignUp(entry.length);
            eraseRecord(id);
            segment.punched += length;
            ++stats_.evictions;
            stats_.evictedBytes += length;
            const bool follows = !holes.empty() && holes.back().path == segment.path &&
                                 holes.back().offset + holes.back().length == entry.offset;
            if (follows) {
                holes.back().length += length;
            } else {
                holes.push_back({segment.path, entry.offset, length});
            }
            drop(id);
        }
        id = newer;
    }
    // Said in the logs before any byte goes: a reader that re-checks sees a miss.
    return flushLogs();
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

void Directory::reclaim(const std::vector<Hole>& holes, const std::vector<std::string>& paths) {
    if (options_.externalSegments) {
        return;
    }
    const std::set<std::string> gone(paths.begin(), paths.end());
    for (const std::string& path : gone) {
        unlink(path.c_str());
    }
    for (const Hole& hole : holes) {
        if (!gone.contains(hole.path)) {
            punch(hole.path, hole.offset, hole.length);
        }
    }
}

std::vector<std::string> Directory::takeDroppedSegments() {
    const MutexLock lock(mutex_);
    return std::exchange(droppedSegments_, {});
}

void Directory::forget(Batch& batch, uint16_t self) {
    const MutexLock lock(mutex_);
    for (const Slot& slot : batch.slots) {
        if (slot.directory != self || slot.state != SlotState::CORRUPT) {
            continue;
        }
        ++stats_.corruptBlocks;
        const uint32_t id = index_.find(slot.key);
        if (id != kNone && index_.at(id).version == slot.version) {
            if (ownedEntry(index_.at(id))) {
                eraseRecord(id);
            }
            drop(id);
        }
    }
    const Status status = flushLogs();
    static_cast<void>(status);  // found corrupt again after a restart, and a miss again
}

Status Directory::erase(const std::vector<Fingerprint>& keys) {
    std::vector<Hole> holes;
    std::vector<std::string> paths;
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
                Segment& segment = segments_[entry.segment];
                segment.punched += alignUp(entry.length);
                holes.push_back({segment.path, entry.offset, alignUp(entry.length)});
                eraseRecord(id);
            }
            drop(id);
        }
        status = flushLogs();
        dropEmptySegments(paths);
    }
    reclaim(holes, paths);
    return status;
}

Status Directory::clear() {
    std::vector<std::string> paths;
    Status status;
    {
        const MutexLock lock(mutex_);
        refresh();
        if (options_.readOnly) {
            return Status::notAllowed(path_ + ": opened for reading only");
        }
        if (index_.size() == 0 && segments_.empty()) {
            return {};
        }
        adoptLogs();
        NIXL_RETURN_IF_ERROR(ensureWriter());
        const uint64_t version = nextVersion();
        std::string record;
        encode({.type = RecordType::CLEAR, .key = {}, .version = version}, record);
        logs_[writer_].pending += record;
        status = flushLogs();
        applyClear(version);
        dropEmptySegments(paths);
        if (status.systemErrno() == ENOSPC) {  // the segments first, then there is room to say it
            reclaim({}, paths);
            logs_[writer_].pending = record;
            status = flushLogs();
        }
    }
    reclaim({}, paths);
    return status;
}

}  // namespace nixl::hicache
