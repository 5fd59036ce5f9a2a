// Following the logs of all writers, and what their records say. See directory.h.
#include <algorithm>
#include <cstdlib>
#include <utility>

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hicache/directory.h"

namespace nixl::hicache {
namespace {

std::vector<std::string> namesIn(const std::string& path, std::string_view suffix) {
    std::vector<std::string> names;
    DIR* listing = opendir(path.c_str());
    if (listing == nullptr) {
        return names;
    }
    while (const dirent* entry = readdir(listing)) {
        const std::string_view name = entry->d_name;
        if (name.size() > suffix.size() && name.ends_with(suffix)) {
            names.emplace_back(name);
        }
    }
    closedir(listing);
    std::sort(names.begin(), names.end());
    return names;
}

}  // namespace

void Directory::refresh() {
    struct stat info {};
    const std::string logs = root_ + "/logs";
    const bool there = ::stat(logs.c_str(), &info) == 0;
    const bool mine = writer_ == kNone || !logs_[writer_].file->detached();
    if (!there || !mine) {
        resetAfterRemoval();
        if (!there) {
            return;
        }
    }
    const uint64_t changed = static_cast<uint64_t>(info.st_mtim.tv_sec) * kSecond +
                             static_cast<uint64_t>(info.st_mtim.tv_nsec);
    if (changed != logsChanged_) {
        scanLogs();
        // Where the clock of the file system is coarse, another log may still appear unseen.
        logsChanged_ = changed + kTooRecent < wallClockNanoseconds() ? changed : 0;
    }
    for (uint32_t i = 0; i < logs_.size(); ++i) {
        if (!logs_[i].owned) {
            follow(i);
        }
    }
}

void Directory::scanLogs() {
    for (const std::string& name : namesIn(root_ + "/logs", ".log")) {
        std::string writer = name.substr(0, name.size() - 4);
        const auto known = logByName_.find(writer);
        if (known != logByName_.end() && logs_[known->second].file != nullptr) {
            continue;
        }
        auto file = LogFile::open(root_ + "/logs/" + name, !options_.readOnly);
        if (!file.ok()) {
            continue;  // gone again, or not ours to read: its blocks are misses
        }
        if (known != logByName_.end()) {
            logs_[known->second].file = std::move(file).value();
            continue;
        }
        Log log;
        log.writer = writer;
        log.file = std::move(file).value();
        logByName_[writer] = static_cast<uint32_t>(logs_.size());
        logs_.push_back(std::move(log));
    }
}

void Directory::follow(uint32_t log) {
    if (logs_[log].file == nullptr) {
        return;
    }
    const auto apply_record = [this, log](const Record& record) NIXL_NO_TSA { apply(log, record); };
    Status status = logs_[log].file->readNew(apply_record);
    if (!status.ok() || !logs_[log].file->detached()) {
        return;
    }
    // Rewritten by its owner: the new file says the same and goes on. Else the writer is gone.
    status = logs_[log].file->readNew(apply_record);
    auto file = LogFile::open(logs_[log].file->path(), !options_.readOnly);
    if (!file.ok()) {
        forgetLog(log);
        return;
    }
    logs_[log].file = std::move(file).value();
    logs_[log].records = 0;
    status = logs_[log].file->readNew(apply_record);
}

void Directory::forgetLog(uint32_t log) {
    for (uint32_t id = 0; id < index_.capacity(); ++id) {
        const Entry& entry = index_.at(id);
        if (entry.used && segments_[entry.segment].log == log) {
            drop(id);
        }
    }
    for (const auto& [number, segment] : logs_[log].segments) {
        segments_[segment].dropped = true;
    }
    logs_[log].segments.clear();
    logs_[log].file.reset();
    logs_[log].owned = false;
}

// The directory was removed underneath: nothing in it exists any more.
void Directory::resetAfterRemoval() {
    index_ = Index();
    for (Segment& segment : segments_) {
        segment.dropped = true;
        segment.live = 0;
    }
    logs_.clear();
    logByName_.clear();
    freed_.clear();
    owners_.assign(1, {});
    lastOwner_ = 0;
    gone_.clear();
    writer_ = current_ = kNone;
    stats_.blocks = stats_.liveBytes = 0;
    clearedUpTo_ = logsChanged_ = 0;
}

bool Directory::adoptLogs() {
    bool any = false;
    for (uint32_t i = 0; i < logs_.size(); ++i) {
        if (!logs_[i].owned && logs_[i].file != nullptr && logs_[i].file->tryLock()) {
            follow(i);
            // What damage took is written down before a damaged end is cut off.
            if (logs_[i].file != nullptr && logs_[i].file->lossy() && !rewriteLog(i).ok()) {
                continue;
            }
            if (logs_[i].file != nullptr && logs_[i].file->adopt().ok()) {
                finishAdoption(i);
                any = true;
            }
        }
    }
    return any;
}

// What a dead writer left: its extents without a log record are lost room, its segments closed.
void Directory::finishAdoption(uint32_t log) {
    Log& mine = logs_[log];
    mine.owned = true;
    for (const auto& [number, index] : mine.segments) {
        Segment& segment = segments_[index];
        segment.sealed = true;
        emptied_ = emptied_ || segment.live == 0;
        mine.nextSegment = std::max(mine.nextSegment, number + 1);
        struct stat info {};
        if (!options_.externalSegments && ::stat(segment.path.c_str(), &info) == 0) {
            segment.size = std::max(segment.size, static_cast<uint64_t>(info.st_size));
            const auto allocated = static_cast<uint64_t>(info.st_blocks) * 512;
            segment.punched = segment.size > allocated ? segment.size - allocated : 0;
        } else if (!options_.externalSegments) {
            segment.dropped = true;  // removed before the log could say so
            dropBlocksOf(index);
        }
    }
    for (const std::string& name : namesIn(root_ + "/segments", "")) {
        if (name.starts_with(mine.writer + "-")) {
            const auto number = static_cast<uint32_t>(
                std::strtoul(name.c_str() + mine.writer.size() + 1, nullptr, 10));
            mine.nextSegment = std::max(mine.nextSegment, number + 1);
            if (!mine.segments.contains(number)) {
                unlink((root_ + "/segments/" + name).c_str());
            }
        }
    }
    if (writer_ == kNone && syncWriter(log).ok()) {
        writer_ = log;
    }
}

void Directory::dropBlocksOf(uint32_t segment) {
    for (uint32_t id = 0; id < index_.capacity(); ++id) {
        if (index_.at(id).used && index_.at(id).segment == segment) {
            drop(id);
        }
    }
}

// After a start the order of use is that of the versions and touches, across all logs.
void Directory::orderByAge() {
    std::vector<std::pair<uint64_t, uint32_t>> order;
    order.reserve(index_.size());
    for (uint32_t id = 0; id < index_.capacity(); ++id) {
        const Entry& entry = index_.at(id);
        if (entry.used) {
            order.emplace_back(std::max(entry.version, entry.touched * kSecond), id);
        }
    }
    std::sort(order.begin(), order.end());
    for (const auto& [age, id] : order) {
        index_.touch(id);
    }
}

void Directory::apply(uint32_t log, const Record& record) {
    ++logs_[log].records;
    lastVersion_ = std::max(lastVersion_, record.version);
    switch (record.type) {
        case RecordType::PUT:
            return applyPut(log, record);
        case RecordType::ERASE: {
            const uint32_t id = index_.find(record.key);
            if (id != kNone && index_.at(id).version <= record.version &&
                segments_[index_.at(id).segment].log == log) {
                drop(id);
            }
            return;
        }
        case RecordType::DROP: {
            Segment& segment = segments_[segmentOf(log, record.segment)];
            segment.dropped = true;
            logs_[log].segments.erase(record.segment);
            return;
        }
        case RecordType::CLEAR:
            return applyClear(record.version);
        case RecordType::CLEAR_OWNER:
            return applyClearOwner(std::string(record.name), record.version);
        case RecordType::GONE:
            return applyGone(record);
        case RecordType::TOUCH: {
            const uint32_t id = index_.find(record.key);
            if (id != kNone) {
                index_.at(id).touched = static_cast<uint32_t>(record.version / kSecond);
                index_.touch(id);
            }
            return;
        }
    }
}

void Directory::applyPut(uint32_t log, const Record& record) {
    const uint32_t segment = segmentOf(log, record.segment);
    segments_[segment].size =
        std::max(segments_[segment].size, record.offset + alignUp(record.length));
    std::string_view owner;
    const uint16_t scope = ownerIn(record.name, record.scope, owner) ? scopeId(owner) : 0;
    if (isGone(record, scope)) {
        return;
    }
    uint32_t id = index_.find(record.key);
    if (id == kNone) {
        id = index_.insert(record.key);
    } else {
        const Entry& old = index_.at(id);
        const uint32_t old_log = segments_[old.segment].log;
        if (old.version > record.version || (old.version == record.version && old_log != log &&
                                             logs_[old_log].writer > logs_[log].writer)) {
            return;
        }
        if (old_log != log && logs_[old_log].owned) {
            eraseRecord(id);  // so that it does not come back once the newer one is evicted
            if (options_.maxBytes != 0) {
                release(old);
            }
        }
        account(id, false);
    }
    Entry& entry = index_.at(id);
    entry.version = record.version;
    entry.offset = record.offset;
    entry.length = record.length;
    entry.segment = segment;
    entry.scope = scope;
    entry.checksum = record.checksum;
    entry.touched = static_cast<uint32_t>(record.version / kSecond);
    account(id, true);
}

void Directory::applyClear(uint64_t version) {
    if (version <= clearedUpTo_) {
        return;
    }
    clearedUpTo_ = version;
    for (uint32_t id = 0; id < index_.capacity(); ++id) {
        if (index_.at(id).used && index_.at(id).version <= version) {
            drop(id);
        }
    }
}

void Directory::applyClearOwner(const std::string& owner, uint64_t version) {
    const uint16_t scope = scopeId(owner);
    if (scope == 0 || version <= owners_[scope].clearedUpTo) {
        return;
    }
    owners_[scope].clearedUpTo = version;
    for (uint32_t id = 0; id < index_.capacity(); ++id) {
        const Entry& entry = index_.at(id);
        if (entry.used && entry.scope == scope && entry.version <= version) {
            if (ownedEntry(entry)) {
                release(entry);
            }
            drop(id);
        }
    }
}

void Directory::applyGone(const Record& record) {
    const Fingerprint key = record.name.empty() ? record.key : fingerprint(secret_, record.name);
    uint64_t& upto = gone_[key];
    upto = std::max(upto, record.version);
    const uint32_t id = index_.find(key);
    if (id != kNone && index_.at(id).version <= record.version) {
        drop(id);
    }
}

bool Directory::isGone(const Record& record, uint16_t scope) const {
    if (record.version <= clearedUpTo_ || record.version <= owners_[scope].clearedUpTo) {
        return true;
    }
    const auto gone = gone_.empty() ? gone_.end() : gone_.find(record.key);
    return gone != gone_.end() && record.version <= gone->second;
}

uint16_t Directory::scopeId(std::string_view owner) {
    if (lastOwner_ != 0 && owners_[lastOwner_].name == owner) {
        return lastOwner_;
    }
    for (size_t i = 1; i < owners_.size(); ++i) {  // a few: models, ranks
        if (owners_[i].name == owner) {
            lastOwner_ = static_cast<uint16_t>(i);
            return lastOwner_;
        }
    }
    if (owners_.size() > UINT16_MAX) {
        return 0;
    }
    owners_.push_back({.name = std::string(owner), .clearedUpTo = 0});
    lastOwner_ = static_cast<uint16_t>(owners_.size() - 1);
    return lastOwner_;
}

uint32_t Directory::segmentOf(uint32_t log, uint32_t number) {
    const auto known = logs_[log].segments.find(number);
    if (known != logs_[log].segments.end()) {
        return known->second;
    }
    Segment segment;
    segment.path = root_ + "/segments/" + logs_[log].writer + "-" + std::to_string(number);
    segment.log = log;
    segment.number = number;
    const auto index = static_cast<uint32_t>(segments_.size());
    segments_.push_back(std::move(segment));
    logs_[log].segments[number] = index;
    logs_[log].nextSegment = std::max(logs_[log].nextSegment, number + 1);
    return index;
}

void Directory::account(uint32_t id, bool add) {
    const Entry& entry = index_.at(id);
    const uint64_t bytes = alignUp(entry.length);
    Segment& segment = segments_[entry.segment];
    if (add) {
        segment.live += bytes;
        ++logs_[segment.log].blocks;
        ++stats_.blocks;
        stats_.liveBytes += bytes;
    } else {
        segment.live -= bytes;
        emptied_ = emptied_ || segment.live == 0;
        --logs_[segment.log].blocks;
        --stats_.blocks;
        stats_.liveBytes -= bytes;
    }
}

void Directory::drop(uint32_t id) {
    account(id, false);
    index_.erase(id);
}

bool Directory::ownedEntry(const Entry& entry) const {
    return logs_[segments_[entry.segment].log].owned;
}

}  // namespace nixl::hicache
