// Keeping a directory small: trimming, compaction, rewriting logs; and checking it. See
// directory.h.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "hicache/directory.h"

namespace nixl::hicache {

Result<bool> Directory::maintain(double dead_fraction) {
    Freed freed;
    Status first;
    {
        const MutexLock lock(mutex_);
        refresh();
        if (options_.readOnly) {
            return false;
        }
        adoptLogs();
        collectStale();
        if (noHoles_.load(std::memory_order_relaxed)) {
            for (Segment& segment : segments_) {
                segment.punched = 0;  // what was counted as given back is still there
            }
        }
        first = trimToCap();
        emptied_ = true;
        freed = takeFreed();
        const Status rewritten = rewriteLogs();
        first = first.ok() ? rewritten : first;
    }
    reclaim(freed);  // also where the disk is too full to say so
    if (options_.externalSegments) {
        return first.ok() ? Result<bool>(false) : first;
    }
    auto moved = compactOne(dead_fraction);
    // A disk without room for the copies: then the dead extents go as they are.
    if (!moved.ok() && moved.status().systemErrno() == ENOSPC && reclaimDead() != 0) {
        moved = true;
    }
    return first.ok() ? moved : first;
}

Status Directory::rewriteLogs() {
    Status first;
    for (uint32_t i = 0; i < logs_.size(); ++i) {
        const Log& log = logs_[i];
        const bool large = log.file != nullptr && log.file->readBytes() > options_.logRewriteBytes;
        if (log.owned && large && log.records > 4 * (log.blocks + 1)) {
            const Status status = rewriteLog(i);
            first = first.ok() ? status : first;
        }
    }
    return first;
}

uint32_t Directory::pickSegment(double dead_fraction) {
    uint32_t best = kNone;
    uint64_t most = 0;
    for (uint32_t i = 0; i < segments_.size(); ++i) {
        const Segment& segment = segments_[i];
        const bool idle = segment.sealed && segment.pending == 0 && !segment.dropped;
        if (!idle || !logs_[segment.log].owned || segment.live + segment.punched >= segment.size) {
            continue;
        }
        const uint64_t dead = segment.size - segment.live - segment.punched;
        if (static_cast<double>(dead) > dead_fraction * static_cast<double>(segment.size) &&
            dead > most) {
            most = dead;
            best = i;
        }
    }
    return best;
}

Result<bool> Directory::compactOne(double dead_fraction) {
    uint32_t segment = kNone;
    std::vector<Item> blocks;
    {
        const MutexLock lock(mutex_);
        segment = pickSegment(dead_fraction);
        if (segment == kNone) {
            return false;
        }
        for (uint32_t id = 0; id < index_.capacity(); ++id) {
            const Entry& entry = index_.at(id);
            if (entry.used && entry.segment == segment) {
                Item item;
                item.key = entry.key;
                item.version = entry.version;
                item.offset = entry.offset;
                item.length = entry.length;
                item.checksum = entry.checksum;
                item.entry = id;
                blocks.push_back(item);
            }
        }
    }
    std::sort(blocks.begin(), blocks.end(),
              [](const Item& a, const Item& b) { return a.offset < b.offset; });
    const Status moved = moveBlocks(segment, blocks);
    Freed freed;
    {
        const MutexLock lock(mutex_);
        freed = takeFreed();
    }
    reclaim(freed);
    return moved.ok() ? Result<bool>(true) : moved;
}

bool Directory::unchanged(const Item& block, uint32_t segment) const {
    if (block.entry >= index_.capacity()) {
        return false;
    }
    const Entry& entry = index_.at(block.entry);
    return entry.used && entry.key == block.key && entry.version == block.version &&
           entry.segment == segment;
}

// Copies whole blocks to the writer's current segment and logs them there as newer versions.
Status Directory::moveBlocks(uint32_t segment, const std::vector<Item>& blocks) {
    auto from = openFile(segmentPath(segment), O_RDONLY);
    if (!from.ok()) {
        return from.status();
    }
    std::vector<Name> names;
    {
        std::vector<Fingerprint> keys;
        keys.reserve(blocks.size());
        for (const Item& block : blocks) {
            keys.push_back(block.key);
        }
        names = scopedNamesOf(keys);
    }
    std::string buffer;
    Batch batch;
    for (size_t i = 0; i < blocks.size(); ++i) {
        buffer.resize(blocks[i].length);
        auto got = readAll(from.value().get(), segmentPath(segment), buffer.data(), buffer.size(),
                           blocks[i].offset);
        batch.items.assign(1, blocks[i]);
        batch.names = names[i].text;
        batch.nameEnds.assign(1, names[i].text.size());
        Item& item = batch.items.front();
        item.scope = names[i].scope;
        if (!got.ok() || got.value() != buffer.size() ||
            base::crc32c(buffer) != blocks[i].checksum) {
            item.state = ItemState::CORRUPT;
            forget(batch, 0);
            continue;
        }
        std::string path;
        {
            const MutexLock lock(mutex_);
            NIXL_RETURN_IF_ERROR(ensureWriter());
            NIXL_RETURN_IF_ERROR(allocate(item));
            path = segments_[item.segment].path;
        }
        auto to = openFile(path, O_WRONLY);
        Status written =
            to.ok() ? writeAll(to.value().get(), path, buffer.data(), buffer.size(), item.offset)
                    : to.status();
        if (written.ok() && options_.durable) {
            written = syncSegments(batch, item.directory);
        }
        const MutexLock lock(mutex_);
        release(item);
        const bool stay = written.ok() && unchanged(blocks[i], segment);
        if (!stay && !segments_[item.segment].dropped) {
            release(item.segment, item.offset, item.length);
        }
        NIXL_RETURN_IF_ERROR(written);
        if (stay) {
            item.state = ItemState::NEW;
            stats_.compactedBytes += alignUp(item.length);
            NIXL_RETURN_IF_ERROR(insertStored(batch, item.directory, false));
        }
    }
    return {};
}

// Writes the records that still count to a new file and puts it in place of the old one. Those who
// follow the log have read the old one to its end when they notice.
Status Directory::rewriteLog(uint32_t log) {
    NIXL_RETURN_IF_ERROR(flushLogs());
    const std::string path = logs_[log].file->path();
    const std::string temporary = path + ".new";
    unlink(temporary.c_str());
    auto made = LogFile::create(temporary, options_.fileMode);
    if (!made.ok()) {
        return made.status();
    }
    uint64_t count = 0;
    Status status = copyLog(log, *made.value(), count);
    if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
        status = systemError("rename", temporary, errno);
    }
    if (!status.ok()) {
        unlink(temporary.c_str());
        return status;
    }
    stats_.damagedLogBytes += logs_[log].file->damagedBytes();
    made.value()->moved(path);
    logs_[log].file = std::move(made).value();
    logs_[log].records = count;
    return syncWriter(log);
}

Status Directory::copyLog(uint32_t log, LogFile& fresh, uint64_t& count) {
    auto old = LogFile::open(logs_[log].file->path(), false);
    if (!old.ok()) {
        return old.status();
    }
    std::string records;
    Status status;
    const Status read = old.value()->readNew([&](const Record& record) NIXL_NO_TSA {
        if (record.type != RecordType::PUT || !status.ok()) {
            return;
        }
        const uint32_t id = index_.find(record.key);
        if (id == kNone || index_.at(id).version != record.version ||
            index_.at(id).offset != record.offset || segments_[index_.at(id).segment].log != log ||
            segments_[index_.at(id).segment].number != record.segment) {
            return;
        }
        encode(record, records);
        const uint64_t touched = index_.at(id).touched * 1000000000ULL;
        if (touched > record.version) {
            encode({.type = RecordType::TOUCH, .key = record.key, .version = touched}, records);
        }
        ++count;
        if (records.size() > (1U << 20)) {
            status = fresh.append(records);
            records.clear();
        }
    });
    NIXL_RETURN_IF_ERROR(read);
    NIXL_RETURN_IF_ERROR(status);
    // Behind the blocks: where one of these is damaged, all blocks are older than what follows.
    encode({.type = RecordType::CLEAR, .key = {}, .version = clearedUpTo_}, records);
    for (const Owner& owner : owners_) {
        if (owner.clearedUpTo != 0) {
            encode(clearOwner(owner.name, owner.clearedUpTo), records);
        }
    }
    for (const auto& [key, version] : gone_) {
        encode({.type = RecordType::GONE, .key = key, .version = version}, records);
    }
    NIXL_RETURN_IF_ERROR(fresh.append(records));
    return fresh.sync();
}

CheckResult Directory::check(uint32_t from, uint64_t max_bytes) {
    CheckResult out;
    std::vector<std::pair<Item, std::string>> blocks;
    {
        const MutexLock lock(mutex_);
        uint32_t id = from;
        for (; id < index_.capacity() && out.bytes < max_bytes; ++id) {
            const Entry& entry = index_.at(id);
            if (entry.used && !segments_[entry.segment].dropped) {
                Item item;
                item.key = entry.key;
                item.offset = entry.offset;
                item.length = entry.length;
                item.checksum = entry.checksum;
                blocks.emplace_back(item, segments_[entry.segment].path);
                out.bytes += entry.length;
            }
        }
        out.next = id < index_.capacity() ? id : kNone;
    }
    out.blocks = blocks.size();
    std::string buffer;
    base::Fd fd;
    std::string opened;
    for (const auto& [item, path] : blocks) {
        if (opened != path) {
            auto file = openFile(path, O_RDONLY);
            fd = file.ok() ? std::move(file).value() : base::Fd();
            opened = path;
        }
        buffer.resize(item.length);
        auto got = readAll(fd.get(), path, buffer.data(), buffer.size(), item.offset);
        if (!got.ok() || got.value() != buffer.size() || base::crc32c(buffer) != item.checksum) {
            out.bad.push_back(item.key);
        }
    }
    return out;
}

std::vector<std::string> Directory::namesOf(const std::vector<Fingerprint>& keys) {
    std::vector<std::string> names;
    for (Name& name : scopedNamesOf(keys)) {
        names.push_back(std::move(name.text));
    }
    return names;
}

std::vector<Directory::Name> Directory::scopedNamesOf(const std::vector<Fingerprint>& keys) {
    std::unordered_map<Fingerprint, size_t, FingerprintHash> wanted;
    for (size_t i = 0; i < keys.size(); ++i) {
        wanted[keys[i]] = i;
    }
    std::vector<std::string> paths;
    {
        const MutexLock lock(mutex_);
        for (const Log& log : logs_) {
            if (log.file != nullptr) {
                paths.push_back(log.file->path());
            }
        }
    }
    std::vector<Name> names(keys.size());
    for (const std::string& path : paths) {
        auto log = LogFile::open(path, false);
        if (log.ok()) {
            const Status status = log.value()->readNew([&](const Record& record) {
                const auto at = wanted.find(record.key);
                if (record.type == RecordType::PUT && at != wanted.end()) {
                    names[at->second] = {std::string(record.name), record.scope};
                }
            });
            static_cast<void>(status);
        }
    }
    return names;
}

}  // namespace nixl::hicache
