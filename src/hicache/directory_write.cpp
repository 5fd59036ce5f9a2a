// Storing, erasing and evicting blocks. See directory.h.
#include <algorithm>
#include <cerrno>
#include <set>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hicache/directory.h"

namespace nixl::hicache {
namespace {

constexpr int kCreateAttempts = 16;
constexpr uint32_t kEvictionScan = 1U << 16;  // entries of others looked past, at most

void punch(const std::string& path, uint64_t offset, uint64_t length) {
    auto fd = openFile(path, O_WRONLY);
    if (fd.ok()) {  // where holes are not supported, compaction gets the room back
        fallocate(fd.value().get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(offset), static_cast<off_t>(length));
    }
}

}  // namespace

uint64_t Directory::nextVersion() {
    lastVersion_ = std::max(lastVersion_ + 1, wallClockNanoseconds());
    return lastVersion_;
}

Status Directory::ensureWriter() {
    if (options_.readOnly) {
        return Status::notAllowed(path_ + ": opened for reading only");
    }
    if (writer_ != kNone) {
        return {};
    }
    NIXL_RETURN_IF_ERROR(makeDirectories(root_ + "/logs"));
    NIXL_RETURN_IF_ERROR(makeDirectories(root_ + "/segments"));
    NIXL_RETURN_IF_ERROR(loadFormat());
    Log log;
    // Another process may find the log before it is locked, take it for one of a dead writer and
    // keep it: then it is that one's, and empty.
    for (int left = kCreateAttempts; log.file == nullptr; --left) {
        log.writer = randomName();
        auto file = LogFile::create(root_ + "/logs/" + log.writer + ".log");
        if (!file.ok() && (file.status().systemErrno() != EWOULDBLOCK || left == 0)) {
            return file.status();
        }
        if (file.ok()) {
            log.file = std::move(file).value();
        }
    }
    log.owned = true;
    writer_ = static_cast<uint32_t>(logs_.size());
    logByName_[log.writer] = writer_;
    logs_.push_back(std::move(log));
    return {};
}

Status Directory::newSegment() {
    if (current_ != kNone) {
        segments_[current_].sealed = true;
        current_ = kNone;
    }
    const uint32_t number = logs_[writer_].nextSegment;
    const uint32_t index = segmentOf(writer_, number);
    if (!options_.externalSegments) {
        auto fd = openFile(segments_[index].path, O_WRONLY | O_CREAT | O_EXCL);
        if (!fd.ok()) {
            segments_[index].dropped = true;
            logs_[writer_].segments.erase(number);
            return fd.status();
        }
    }
    current_ = index;
    return {};
}

Status Directory::place(Slot& slot) {
    const uint64_t bytes = alignUp(slot.length);
    if (current_ == kNone || segments_[current_].sealed ||
        (segments_[current_].size != 0 &&
         segments_[current_].size + bytes > options_.segmentBytes)) {
        NIXL_RETURN_IF_ERROR(newSegment());
    }
    Segment& segment = segments_[current_];
    slot.segment = current_;
    slot.offset = segment.size;
    slot.version = 0;
    slot.state = SlotState::NEW;
    slot.held = true;
    segment.size += bytes;
    ++segment.pending;
    reserved_ += bytes;
    return {};
}

void Directory::settle(Slot& slot) {
    if (slot.held) {
        slot.held = false;
        --segments_[slot.segment].pending;
        reserved_ -= alignUp(slot.length);
    }
}

Status Directory::reserve(Batch& batch, uint16_t self, bool replace) {
    std::vector<Hole> holes;
    std::vector<std::string> paths;
    Status status;
    {
        const MutexLock lock(mutex_);
        refresh();
        uint64_t wanted = 0;
        bool any = false;
        for (Slot& slot : batch.slots) {
            if (slot.directory != self) {
                continue;
            }
            slot.state = SlotState::REFUSED;
            const uint32_t id = replace ? kNone : index_.find(slot.key);
            if (id != kNone && index_.at(id).length == slot.length &&
                !segments_[index_.at(id).segment].dropped) {
                slot.state = SlotState::STORED;
                touch(id);
            } else {
                wanted += alignUp(slot.length);
                any = true;
            }
        }
        if (!any) {
            return {};
        }
        status = ensureWriter();
        if (status.ok()) {
            status = evict(wanted, holes);
        }
        if (status.ok() && options_.segmentPerBatch) {
            status = newSegment();
        }
        for (size_t i = 0; status.ok() && i < batch.slots.size(); ++i) {
            if (batch.slots[i].directory == self && batch.slots[i].state == SlotState::REFUSED) {
                status = place(batch.slots[i]);
            }
        }
        if (!holes.empty()) {
            dropEmptySegments(paths);
        }
    }
    reclaim(holes, paths);
    return status;
}

Status Directory::syncSegments(const Batch& batch, uint16_t self) {
    std::set<std::string> paths;
    for (const Slot& slot : batch.slots) {
        if (slot.directory == self && slot.state == SlotState::NEW) {
            paths.insert(segmentPath(slot.segment));
        }
    }
    for (const std::string& path : paths) {
        auto fd = openFile(path, O_WRONLY);
        if (!fd.ok()) {
            return fd.status();
        }
        if (fdatasync(fd.value().get()) != 0) {
            return systemError("fdatasync", path, errno);
        }
    }
    return {};
}

Status Directory::commit(Batch& batch, uint16_t self) {
    Status status;
    if (options_.durable && !options_.externalSegments) {
        status = syncSegments(batch, self);
    }
    const MutexLock lock(mutex_);
    for (Slot& slot : batch.slots) {
        if (slot.directory == self && slot.state == SlotState::NEW && !status.ok()) {
            slot.state = SlotState::FAILED;
        }
        // The directory may have been removed, and its segments forgotten, since the reservation.
        if (slot.directory == self && slot.state == SlotState::NEW &&
            segments_[slot.segment].dropped) {
            slot.state = SlotState::FAILED;
            status = Status::notFound(path_ + ": removed while blocks were written to it");
        }
    }
    for (Slot& slot : batch.slots) {
        if (slot.directory == self) {
            settle(slot);
        }
    }
    NIXL_RETURN_IF_ERROR(status);
    return insertStored(batch, self);
}

Status Directory::insertStored(Batch& batch, uint16_t self) {
    if (writer_ == kNone) {
        return {};
    }
    Log& log = logs_[writer_];
    std::string records;
    size_t count = 0;
    for (size_t i = 0; i < batch.slots.size(); ++i) {
        Slot& slot = batch.slots[i];
        if (slot.directory == self && slot.state == SlotState::NEW) {
            slot.version = nextVersion();
            encode({.type = RecordType::PUT,
                    .key = slot.key,
                    .version = slot.version,
                    .offset = slot.offset,
                    .length = slot.length,
                    .segment = segments_[slot.segment].number,
                    .checksum = slot.checksum,
                    .name = batch.name(i)},
                   records);
            ++count;
        }
    }
    if (count == 0) {
        return {};
    }
    Status status = log.file->detached()
                        ? Status::notFound(log.file->path() + ": removed underneath")
                        : log.file->append(records);
    if (status.ok() && options_.durable) {
        status = log.file->sync();
    }
    for (Slot& slot : batch.slots) {
        if (slot.directory != self || slot.state != SlotState::NEW) {
            continue;
        }
        slot.state = status.ok() ? SlotState::STORED : SlotState::FAILED;
        if (status.ok()) {
            ++log.records;
            applyPut(writer_, {.key = slot.key,
                               .version = slot.version,
                               .offset = slot.offset,
                               .length = slot.length,
                               .segment = segments_[slot.segment].number,
                               .checksum = slot.checksum,
                               .name = {}});
        }
    }
    NIXL_RETURN_IF_ERROR(status);
    return flushLogs();
}

Status Directory::flushLogs() {
    Status first;
    for (Log& log : logs_) {
        if (log.pending.empty() || !log.owned || log.file == nullptr) {
            log.pending.clear();
            continue;
        }
        const Status status = log.file->append(log.pending);
        log.pending.clear();
        if (!status.ok() && first.ok()) {
            first = status;
        }
    }
    return first;
}

void Directory::eraseRecord(uint32_t id) {
    const Entry& entry = index_.at(id);
    encode({.type = RecordType::ERASE, .key = entry.key, .version = entry.version},
           logs_[segments_[entry.segment].log].pending);
}

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
