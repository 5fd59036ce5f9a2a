// See log_file.h.
#include "hicache/log_file.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nixl::hicache {
namespace {
constexpr size_t kChunk = 1 << 20;
}

Result<std::unique_ptr<LogFile>> LogFile::create(const std::string& path, unsigned mode) {
    auto fd = openFile(path, O_RDWR | O_CREAT | O_EXCL, mode);
    if (!fd.ok()) {
        return fd.status();
    }
    std::unique_ptr<LogFile> log(new LogFile(path, std::move(fd).value()));
    if (!log->tryLock()) {
        return systemError("lock", path, EWOULDBLOCK);
    }
    return log;
}

Result<std::unique_ptr<LogFile>> LogFile::open(const std::string& path, bool writable) {
    auto fd = openFile(path, writable ? O_RDWR : O_RDONLY);
    if (!fd.ok() && writable) {  // following needs no right to write
        writable = false;
        fd = openFile(path, O_RDONLY);
    }
    if (!fd.ok()) {
        return fd.status();
    }
    std::unique_ptr<LogFile> log(new LogFile(path, std::move(fd).value()));
    log->writable_ = writable;
    return log;
}

bool LogFile::tryLock() {
    if (!writable_) {
        return false;
    }
    while (flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EINTR) {
            return false;
        }
    }
    if (detached()) {  // rewritten between open and lock
        flock(fd_.get(), LOCK_UN);
        return false;
    }
    locked_ = true;
    return true;
}

Status LogFile::adopt() {
    struct stat info {};
    if (fstat(fd_.get(), &info) != 0) {
        return systemError("stat", path_, errno);
    }
    if (static_cast<uint64_t>(info.st_size) > readOffset_) {
        damaged_ += static_cast<uint64_t>(info.st_size) - readOffset_;
        if (ftruncate(fd_.get(), static_cast<off_t>(readOffset_)) != 0) {
            return systemError("truncate", path_, errno);
        }
    }
    return {};
}

Status LogFile::readNew(const std::function<void(const Record&)>& apply) {
    struct stat info {};
    if (fstat(fd_.get(), &info) != 0) {
        return systemError("stat", path_, errno);
    }
    const auto size = static_cast<uint64_t>(info.st_size);
    if (size <= readOffset_ || size == stuckSize_) {
        return {};
    }
    NIXL_RETURN_IF_ERROR(readUpTo(size, apply));
    stuckSize_ = readOffset_ < size ? size : 0;
    return {};
}

Status LogFile::readUpTo(uint64_t end, const std::function<void(const Record&)>& apply) {
    uint64_t fetched = readOffset_;  // the buffer holds [readOffset_, fetched)
    buffer_.clear();
    while (true) {
        const size_t held = buffer_.size();
        const size_t more = std::min<uint64_t>(kChunk, end - fetched);
        buffer_.resize(held + more);
        auto got = readAll(fd_.get(), path_, buffer_.data() + held, more, fetched);
        if (!got.ok()) {
            return got.status();
        }
        buffer_.resize(held + got.value());
        fetched += got.value();
        const bool last = fetched >= end || got.value() < more;
        const size_t at = readChunk(last, apply);
        buffer_.erase(0, at);
        readOffset_ += at;
        if (last) {
            break;
        }
    }
    // Damage at the end: newer than all that was read, and no younger than now.
    reportLost(std::max(newest_, wallClockNanoseconds()) + 1, apply);
    buffer_.clear();
    buffer_.shrink_to_fit();
    return {};
}

// Gives the records in the buffer; how many of its bytes are done with.
size_t LogFile::readChunk(bool last, const std::function<void(const Record&)>& apply) {
    const std::string_view bytes = buffer_;
    size_t at = 0;
    Record record;
    size_t size = 0;
    while (at < bytes.size()) {
        const Decoded what = decode(bytes.substr(at), record, size);
        if (what == Decoded::RECORD) {
            // Only these have versions that grow from one to the next.
            if (record.type == RecordType::PUT) {
                newest_ = std::max(newest_, record.version);
                reportLost(record.version, apply);
            }
            apply(record);
            at += size;
            continue;
        }
        // Behind damage, or a length that never completes, look for the next whole record.
        if (what == Decoded::INCOMPLETE && !last) {
            break;
        }
        const size_t next = findRecord(bytes, at + 1);
        if (next == std::string_view::npos) {
            if (last) {
                lose(bytes.substr(at));
            }
            break;
        }
        lose(bytes.substr(at, next - at));
        damaged_ += next - at;
        at = next;
    }
    return at;
}

void LogFile::lose(std::string_view bytes) {
    for (size_t size = 0; !bytes.empty() && !tornPrefix(bytes); bytes.remove_prefix(size)) {
        lossy_ = true;
        Record record;
        if (!recover(bytes, record, size)) {
            lost_.assign(1, {});
            return;
        }
        if (lost_.empty() || lost_[0].key != Fingerprint() || !lost_[0].name.empty()) {
            lost_.push_back({record.key, std::string(record.name)});
        }
    }
}

void LogFile::reportLost(uint64_t version, const std::function<void(const Record&)>& apply) {
    for (const Lost& lost : std::exchange(lost_, {})) {
        const bool known = lost.key != Fingerprint() || !lost.name.empty();
        apply({.type = known ? RecordType::GONE : RecordType::CLEAR,
               .key = lost.key,
               .version = version == 0 ? 0 : version - 1,
               .name = lost.name});
    }
}

Status LogFile::append(std::string_view records) {
    Status written = writeAll(fd_.get(), path_, records.data(), records.size(), readOffset_);
    if (!written.ok()) {
        if (ftruncate(fd_.get(), static_cast<off_t>(readOffset_)) != 0) {
            return systemError("cut a failed append off", path_, errno);
        }
        return written;
    }
    readOffset_ += records.size();
    return {};
}

Status LogFile::sync() {
    return fdatasync(fd_.get()) == 0 ? Status() : systemError("fdatasync", path_, errno);
}

bool LogFile::detached() const {
    struct stat mine {};
    struct stat there {};
    if (fstat(fd_.get(), &mine) != 0 || mine.st_nlink == 0) {
        return true;
    }
    return stat(path_.c_str(), &there) != 0 || there.st_ino != mine.st_ino ||
           there.st_dev != mine.st_dev;
}

}  // namespace nixl::hicache
