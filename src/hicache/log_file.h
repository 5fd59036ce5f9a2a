// One writer's append-only log: the owner holds its flock and appends, everybody else follows it.
// Owned by a Directory and guarded by its mutex; not thread-safe by itself.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "hicache/record.h"
#include "hicache/system.h"

namespace nixl::hicache {

class LogFile {
  public:
    // A new log, locked by this process.
    static Result<std::unique_ptr<LogFile>> create(const std::string& path,
                                                   unsigned mode = kFileMode);
    // An existing one, to be followed; `writable` (where that is allowed) is needed to adopt it.
    static Result<std::unique_ptr<LogFile>> open(const std::string& path, bool writable);

    // Takes the lock if no living process holds it; call adopt() after the log was read.
    bool tryLock();
    // Cuts a torn tail off, so that appending goes on behind the last whole record.
    Status adopt();
    // Every record since the last call. Damage is skipped and counted, and what it may have said is
    // given as a GONE of its key, or else as a CLEAR, up to the version where the log goes on. A
    // torn tail is left.
    Status readNew(const std::function<void(const Record&)>& apply);
    // All bytes or none: what was written of them is cut off again.
    Status append(std::string_view records);
    Status sync();
    // The file is no longer at its path: rewritten by its owner, or removed.
    bool detached() const;
    void moved(std::string path) { path_ = std::move(path); }  // after a rename

    const std::string& path() const { return path_; }
    uint64_t readBytes() const { return readOffset_; }
    uint64_t damagedBytes() const { return damaged_; }
    bool lossy() const { return lossy_; }  // some records cannot be known
    bool locked() const { return locked_; }

  private:
    LogFile(std::string path, base::Fd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
    // Reads from readOffset_ to `end`; returns once no whole record is left.
    Status readUpTo(uint64_t end, const std::function<void(const Record&)>& apply);
    size_t readChunk(bool last, const std::function<void(const Record&)>& apply);
    void lose(std::string_view bytes);
    // Says what was lost: everything before `version`.
    void reportLost(uint64_t version, const std::function<void(const Record&)>& apply);

    std::string path_;
    base::Fd fd_;
    std::string buffer_;
    uint64_t readOffset_ = 0;
    uint64_t stuckSize_ = 0;  // the size at which nothing more could be decoded
    uint64_t damaged_ = 0;
    uint64_t newest_ = 0;  // version of a record that was read
    struct Lost {          // a key, by fingerprint or name; neither: any
        Fingerprint key;
        std::string name;
    };
    std::vector<Lost> lost_;  // not told yet
    bool lossy_ = false;
    bool locked_ = false;
    bool writable_ = true;
};

}  // namespace nixl::hicache
