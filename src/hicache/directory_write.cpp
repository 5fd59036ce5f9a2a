// Storing blocks. See directory.h.
#include <algorithm>
#include <cerrno>
#include <map>

#include <fcntl.h>
#include <unistd.h>

#include "hicache/directory.h"

namespace nixl::hicache {

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
    NIXL_RETURN_IF_ERROR(makeFolders());
    Log log;
    // Another process may find the log before it is locked, take it for one of a dead writer and
    // keep it: then it is that one's, and empty.
    for (int left = kCreateAttempts; log.file == nullptr; --left) {
        log.writer = randomName();
        auto file = LogFile::create(root_ + "/logs/" + log.writer + ".log", options_.fileMode);
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
    return syncWriter(writer_);
}

// What is stored from now on stands in a log that is on the disk itself.
Status Directory::syncWriter(uint32_t log) {
    if (!options_.durable) {
        return {};
    }
    NIXL_RETURN_IF_ERROR(logs_[log].file->sync());
    return syncFolder(root_ + "/logs");
}

Status Directory::newSegment() {
    if (current_ != kNone) {
        segments_[current_].sealed = true;
        current_ = kNone;
    }
    const uint32_t number = logs_[writer_].nextSegment;
    const uint32_t index = segmentOf(writer_, number);
    if (!options_.externalSegments) {
        auto fd = openFile(segments_[index].path, O_WRONLY | O_CREAT | O_EXCL, options_.fileMode);
        if (!fd.ok()) {
            segments_[index].dropped = true;
            logs_[writer_].segments.erase(number);
            return fd.status();
        }
    }
    current_ = index;
    return {};
}

Status Directory::allocate(Item& item) {
    const uint64_t bytes = alignUp(item.length);
    if (current_ == kNone || segments_[current_].sealed ||
        (segments_[current_].size != 0 &&
         segments_[current_].size + bytes > options_.segmentBytes)) {
        NIXL_RETURN_IF_ERROR(newSegment());
    }
    Segment& segment = segments_[current_];
    item.segment = current_;
    item.offset = segment.size;
    item.version = 0;
    item.state = ItemState::NEW;
    item.held = true;
    segment.size += bytes;
    segment.pendingFrom = segment.pending == 0 ? item.offset : segment.pendingFrom;
    ++segment.pending;
    reserved_ += bytes;
    return {};
}

void Directory::release(Item& item) {
    if (item.held) {
        item.held = false;
        Segment& segment = segments_[item.segment];
        --segment.pending;
        emptied_ = emptied_ || (segment.pending == 0 && segment.live == 0);
        reserved_ -= alignUp(item.length);
    }
}

Status Directory::reserve(Batch& batch, uint16_t self, bool replace) {
    Freed freed;
    Status status;
    {
        const MutexLock lock(mutex_);
        refresh();
        uint64_t wanted = 0;
        bool any = false;
        for (Item& item : batch.items) {
            if (item.directory != self) {
                continue;
            }
            item.state = ItemState::REFUSED;
            const uint32_t id = replace ? kNone : index_.find(item.key);
            if (id != kNone && index_.at(id).length == item.length &&
                !segments_[index_.at(id).segment].dropped) {
                item.state = ItemState::STORED;
                touch(id);
            } else {
                wanted += alignUp(item.length);
                any = true;
            }
        }
        if (!any) {
            return {};
        }
        status = ensureWriter();
        if (status.ok()) {
            status = makeRoom(wanted);
        }
        if (status.ok() && options_.segmentPerBatch) {
            status = newSegment();
        }
        for (size_t i = 0; status.ok() && i < batch.items.size(); ++i) {
            if (batch.items[i].directory == self && batch.items[i].state == ItemState::REFUSED) {
                status = allocate(batch.items[i]);
                if (status.systemErrno() == ENOSPC &&
                    reclaim({.holes = deadPlaces(), .paths = {}}) != 0) {
                    status = allocate(batch.items[i]);
                }
            }
        }
        freed = takeFreed();
    }
    reclaim(freed);
    return status;
}

Status Directory::syncSegments(const Batch& batch, uint16_t self) {
    std::map<uint32_t, std::string> unnamed;
    std::map<uint32_t, std::string> paths;
    {
        const MutexLock lock(mutex_);
        for (const Item& item : batch.items) {
            if (item.directory == self && item.state == ItemState::NEW) {
                const Segment& segment = segments_[item.segment];
                paths.emplace(item.segment, segment.path);
                if (!segment.named) {
                    unnamed.emplace(item.segment, segment.path);
                }
            }
        }
    }
    for (const auto& [index, path] : paths) {
        auto fd = openFile(path, O_WRONLY);
        if (!fd.ok()) {
            return fd.status();
        }
        if (fdatasync(fd.value().get()) != 0) {
            return systemError("fdatasync", path, errno);
        }
    }
    if (!unnamed.empty()) {
        NIXL_RETURN_IF_ERROR(syncFolder(root_ + "/segments"));
        const MutexLock lock(mutex_);
        for (const auto& [index, path] : unnamed) {
            segments_[index].named = true;
        }
    }
    return {};
}

Status Directory::commit(Batch& batch, uint16_t self) {
    Status status;
    if (options_.durable && !options_.externalSegments) {
        status = syncSegments(batch, self);
    }
    Freed freed;
    {
        const MutexLock lock(mutex_);
        const Status told = finishAll(batch, self, status);
        status = status.ok() ? told : status;
        if (status.ok()) {
            status = insertStored(batch, self, options_.maxBytes != 0);
        }
        const Status trimmed = trimToCap();  // others may have stored since the reservation
        status = status.ok() ? trimmed : status;
        freed = takeFreed();
    }
    reclaim(freed);
    return status;
}

// Ends the reservations; what was not written gives its place back. NEW items become FAILED where
// `status` is an error, or where they have no extent any more.
Status Directory::finishAll(Batch& batch, uint16_t self, const Status& status) {
    Status first;
    for (Item& item : batch.items) {
        if (item.directory != self) {
            continue;
        }
        if (item.state == ItemState::NEW && !status.ok()) {
            item.state = ItemState::FAILED;
        }
        // The directory may have been removed, and its segments forgotten, since the reservation.
        if (item.state == ItemState::NEW && segments_[item.segment].dropped) {
            item.state = ItemState::FAILED;
            first = Status::notFound(path_ + ": removed while blocks were written to it");
        }
        if (item.held && item.state != ItemState::NEW && !segments_[item.segment].dropped) {
            release(item.segment, item.offset, item.length);
        }
        release(item);
    }
    return first;
}

Status Directory::insertStored(Batch& batch, uint16_t self, bool reclaim_old) {
    if (writer_ == kNone) {
        return {};
    }
    Log& log = logs_[writer_];
    std::string records;
    size_t count = 0;
    for (size_t i = 0; i < batch.items.size(); ++i) {
        Item& item = batch.items[i];
        if (item.directory == self && item.state == ItemState::NEW) {
            item.version = nextVersion();
            encode({.type = RecordType::PUT,
                    .key = item.key,
                    .version = item.version,
                    .offset = item.offset,
                    .length = item.length,
                    .segment = segments_[item.segment].number,
                    .checksum = item.checksum,
                    .name = batch.name(i),
                    .scope = item.scope},
                   records);
            ++count;
        }
    }
    if (count == 0) {
        return {};
    }
    Status status = log.file->detached()
                        ? Status::notFound(log.file->path() + ": removed underneath")
                        : append(log, records);
    if (status.ok() && options_.durable) {
        status = log.file->sync();
    }
    for (size_t i = 0; i < batch.items.size(); ++i) {
        Item& item = batch.items[i];
        if (item.directory != self || item.state != ItemState::NEW) {
            continue;
        }
        item.state = status.ok() ? ItemState::STORED : ItemState::FAILED;
        if (status.ok()) {
            ++log.records;
            const uint32_t old = reclaim_old ? index_.find(item.key) : kNone;
            if (old != kNone && ownedEntry(index_.at(old))) {
                release(index_.at(old));
            }
            applyPut(writer_, {.key = item.key,
                               .version = item.version,
                               .offset = item.offset,
                               .length = item.length,
                               .segment = segments_[item.segment].number,
                               .checksum = item.checksum,
                               .name = batch.name(i),
                               .scope = item.scope});
        }
    }
    NIXL_RETURN_IF_ERROR(status);
    return flushLogs();
}

Status Directory::append(Log& log, std::string_view records) {
    Status status = log.file->append(records);
    if (status.systemErrno() == ENOSPC && reclaim({.holes = deadPlaces(), .paths = {}}) != 0) {
        status = log.file->append(records);
    }
    return status;
}

Status Directory::flushLogs() {
    Status first;
    for (Log& log : logs_) {
        if (log.pending.empty() || !log.owned || log.file == nullptr) {
            log.pending.clear();
            continue;
        }
        const Status status = append(log, log.pending);
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

}  // namespace nixl::hicache
