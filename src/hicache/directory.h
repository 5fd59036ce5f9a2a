// One storage directory of the packed layout: segment files with the payload (written by one
// process each), a log per writer, and the index of all of them in memory. Layout on disk:
//   DIR/.nixl-packed/format              version and the secret of the fingerprints
//   DIR/.nixl-packed/logs/WRITER.log     what WRITER stored; flock held while it lives
//   DIR/.nixl-packed/segments/WRITER-N   payload, 4 KiB aligned, never overwritten
// Owned by a Store. Thread-safe: one mutex, held for memory work and log appends only.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nixl/error.h"

#include "base/mutex.h"
#include "hicache/batch.h"
#include "hicache/index.h"
#include "hicache/log_file.h"
#include "hicache/system.h"

namespace nixl::hicache {

inline constexpr uint64_t kAlignment = 4096;
inline constexpr uint64_t kSecond = 1000000000;  // in nanoseconds
// Evicting frees this part of the cap more than is needed, so that not every call evicts.
inline constexpr uint64_t kEvictionSlack = 64;
// Entries of other writers that evicting looks past, at most: they evict their own in their upkeep.
inline constexpr uint32_t kEvictionScan = 1U << 16;
// That a block was read is logged at most so often.
inline constexpr uint32_t kTouchSeconds = 60;
// A folder that changed less than so many nanoseconds ago may change again without its time
// telling.
inline constexpr uint64_t kTooRecent = 20000000;
// A new log that another process locks first is left to it, and another made, so many times.
inline constexpr int kCreateAttempts = 16;
// What is not finished after so many seconds, and locked by nobody, never will be.
inline constexpr int64_t kStaleSeconds = 600;
constexpr uint64_t alignUp(uint64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

struct DirectoryOptions {
    uint64_t segmentBytes = 256ULL << 20;
    uint64_t maxBytes = 0;                   // payload on disk in this directory; 0: no cap
    uint64_t logRewriteBytes = 16ULL << 20;  // smaller logs are left as they are
    bool durable = false;           // payload, log and their names on the disk before it is stored
    bool readOnly = false;          // look only: create, adopt and repair nothing
    bool segmentPerBatch = false;   // for stores whose "segments" are objects, written whole
    bool externalSegments = false;  // segments are no files here: never create, punch or unlink
    unsigned fileMode = kFileMode;  // of files that are made; folders fit them
};

struct DirectoryStats {
    uint64_t blocks = 0;
    uint64_t liveBytes = 0;  // payload, rounded up to the alignment
    uint64_t diskBytes = 0;  // allocated in segments, live or not yet reclaimed
    uint64_t segments = 0;
    uint64_t writers = 0;
    uint64_t ownedWriters = 0;
    uint64_t logBytes = 0;
    uint64_t damagedLogBytes = 0;
    uint64_t evictions = 0;
    uint64_t evictedBytes = 0;
    uint64_t compactedBytes = 0;
    uint64_t corruptBlocks = 0;
};

struct CheckResult {
    uint32_t next = 0;  // where the next call goes on; kNone at the end
    uint64_t blocks = 0;
    uint64_t bytes = 0;
    std::vector<Fingerprint> bad;
};

class Directory {
  public:
    static Result<std::unique_ptr<Directory>> open(const std::string& path,
                                                   const DirectoryOptions& options);
    ~Directory();

    const HashSecret& secret() const { return secret_; }
    const std::string& path() const { return path_; }
    bool readOnly() const { return options_.readOnly; }

    // The following work on the batch's items whose directory is `self`.
    void find(Batch& batch, uint16_t self);
    // After reading: a hit whose entry has changed meanwhile becomes a miss.
    void confirm(Batch& batch, uint16_t self);
    // Hits that could not be read (FAILED): forgotten where their bytes are not there for anybody,
    // so that nothing is said to exist that cannot be fetched.
    void probe(Batch& batch, uint16_t self);
    // Forgets CORRUPT items; those of this process' writers for good.
    void forget(Batch& batch, uint16_t self);
    // Gives every item that is not stored yet an extent (`replace`: also those that are).
    Status reserve(Batch& batch, uint16_t self, bool replace);
    // NEW items become STORED, all with one append; others that had an extent give it back.
    Status commit(Batch& batch, uint16_t self);
    // How many leading items are stored.
    size_t containsPrefix(const Batch& batch);

    Status erase(const std::vector<Fingerprint>& keys);
    Status clear();
    // Removes what these owners stored, whoever wrote it; owners are matched as a whole.
    Status clearOwners(const std::vector<std::string>& owners);
    // Gives the room of every dead extent back, for a disk that is full; how many bytes that was.
    uint64_t reclaimDead();
    // Evicts the least recently used blocks of this process until `bytes` of all are left; how many
    // bytes of them went.
    Result<uint64_t> shrink(uint64_t bytes);
    // Adopts logs of dead writers, trims to the cap, reclaims segments; true: call again soon.
    Result<bool> maintain(double dead_fraction);
    std::string segmentPath(uint32_t segment) const;
    bool segmentDropped(uint32_t segment) const;
    // Objects that back dropped segments (externalSegments), to be deleted by the caller.
    std::vector<std::string> takeDroppedSegments();
    DirectoryStats stats();
    // Reads blocks from entry `from` on, at most `max_bytes`, and compares their checksums.
    CheckResult check(uint32_t from, uint64_t max_bytes);
    // The keys behind fingerprints, from the logs; empty where unknown.
    std::vector<std::string> namesOf(const std::vector<Fingerprint>& keys);
    // The same, with whose they are.
    struct Name {
        std::string text;
        uint32_t scope = 0;
    };
    std::vector<Name> scopedNamesOf(const std::vector<Fingerprint>& keys);

  private:
    struct Segment {
        std::string path;
        uint32_t log = 0;
        uint32_t number = 0;
        uint64_t size = 0;         // end of the last extent given out
        uint64_t live = 0;         // bytes of blocks in the index
        uint64_t punched = 0;      // bytes given back to the file system
        uint32_t pending = 0;      // reserved, not yet committed
        uint64_t pendingFrom = 0;  // none of those lies before this
        bool sealed = false;       // takes no more blocks
        bool named = false;        // its name is on the disk, too
        bool dropped = false;
    };
    struct Log {
        std::string writer;
        std::unique_ptr<LogFile> file;
        std::unordered_map<uint32_t, uint32_t> segments;  // number to index
        uint64_t records = 0;
        uint64_t blocks = 0;  // entries in the index that this log holds
        std::string pending;  // records to append to it at the next flush
        uint32_t nextSegment = 0;
        bool owned = false;
    };
    struct Hole {
        std::string path;
        uint64_t offset;
        uint64_t length;
    };
    struct Freed {  // what is to be given back to the file system without the lock
        std::vector<Hole> holes;
        std::vector<std::string> paths;  // segments to be unlinked
    };

    Directory(std::string path, const DirectoryOptions& options);
    Status start();
    Status loadFormat();
    Status makeFolders();
    Status syncFolders() const;
    // Removes what killed writers never finished, once it is old and nobody's.
    void collectStale() NIXL_REQUIRES(mutex_);
    void refresh() NIXL_REQUIRES(mutex_);
    void scanLogs() NIXL_REQUIRES(mutex_);
    void follow(uint32_t log) NIXL_REQUIRES(mutex_) NIXL_NO_TSA;
    void forgetLog(uint32_t log) NIXL_REQUIRES(mutex_);
    void dropBlocksOf(uint32_t segment) NIXL_REQUIRES(mutex_);
    bool adoptLogs() NIXL_REQUIRES(mutex_);
    void finishAdoption(uint32_t log) NIXL_REQUIRES(mutex_);
    void orderByAge() NIXL_REQUIRES(mutex_);
    void resetAfterRemoval() NIXL_REQUIRES(mutex_);
    void apply(uint32_t log, const Record& record) NIXL_REQUIRES(mutex_);
    void applyPut(uint32_t log, const Record& record) NIXL_REQUIRES(mutex_);
    void applyClear(uint64_t version) NIXL_REQUIRES(mutex_);
    void applyClearOwner(const std::string& owner, uint64_t version) NIXL_REQUIRES(mutex_);
    void applyGone(const Record& record) NIXL_REQUIRES(mutex_);
    // Whether a record of this age and kind was said to be gone before it was read.
    bool isGone(const Record& record, uint16_t scope) const NIXL_REQUIRES(mutex_);
    uint16_t scopeId(std::string_view owner) NIXL_REQUIRES(mutex_);
    uint32_t segmentOf(uint32_t log, uint32_t number) NIXL_REQUIRES(mutex_);
    void account(uint32_t id, bool add) NIXL_REQUIRES(mutex_);
    void drop(uint32_t id) NIXL_REQUIRES(mutex_);
    bool ownedEntry(const Entry& entry) const NIXL_REQUIRES(mutex_);
    uint64_t nextVersion() NIXL_REQUIRES(mutex_);
    Status ensureWriter() NIXL_REQUIRES(mutex_);
    Status allocate(Item& item) NIXL_REQUIRES(mutex_);
    void release(Item& item) NIXL_REQUIRES(mutex_);
    Status finishAll(Batch& batch, uint16_t self, const Status& status) NIXL_REQUIRES(mutex_);
    Status newSegment() NIXL_REQUIRES(mutex_);
    // `reclaim_old`: the extents of the values that are replaced are given back.
    Status insertStored(Batch& batch, uint16_t self, bool reclaim_old) NIXL_REQUIRES(mutex_);
    // Appends; on a full disk once more, after the dead extents were given back.
    Status append(Log& log, std::string_view records) NIXL_REQUIRES(mutex_);
    // Appends what waits for the logs of this process.
    Status flushLogs() NIXL_REQUIRES(mutex_);
    // Drops the entry of this item if it is still that version's.
    bool forgetItem(const Item& item) NIXL_REQUIRES(mutex_);
    void eraseRecord(uint32_t id) NIXL_REQUIRES(mutex_);
    void touch(uint32_t id) NIXL_REQUIRES(mutex_);
    // Makes room under the cap for `bytes` that are to be stored.
    Status makeRoom(uint64_t bytes) NIXL_REQUIRES(mutex_);
    // What every clear begins with: this process may write, and owns what it can.
    Status beginClear() NIXL_REQUIRES(mutex_);
    // Evicts the least recently used blocks until `goal` live bytes are left.
    Status trim(uint64_t goal) NIXL_REQUIRES(mutex_);
    // The same where more are left, and then a little more than is needed.
    Status trimTo(uint64_t goal) NIXL_REQUIRES(mutex_);
    Status trimToCap() NIXL_REQUIRES(mutex_);
    // The place of a block that is about to be dropped or replaced goes to freed_.
    void release(const Entry& entry) NIXL_REQUIRES(mutex_);
    void release(uint32_t segment, uint64_t offset, uint64_t length) NIXL_REQUIRES(mutex_);
    // Closes segments without live blocks, and hands out all that may be given back now.
    Freed takeFreed() NIXL_REQUIRES(mutex_);
    void dropEmptySegments(std::vector<std::string>& paths) NIXL_REQUIRES(mutex_);
    std::vector<Hole> deadPlaces() NIXL_REQUIRES(mutex_);
    // The bytes that the file system took back, which it does not where it knows no holes.
    uint64_t reclaim(const Freed& freed);
    Result<bool> compactOne(double dead_fraction);
    uint32_t pickSegment(double dead_fraction) NIXL_REQUIRES(mutex_);
    Status moveBlocks(uint32_t segment, const std::vector<Item>& blocks);
    bool unchanged(const Item& block, uint32_t segment) const NIXL_REQUIRES(mutex_);
    Status rewriteLogs() NIXL_REQUIRES(mutex_);
    Status rewriteLog(uint32_t log) NIXL_REQUIRES(mutex_) NIXL_NO_TSA;
    Status copyLog(uint32_t log, LogFile& fresh, uint64_t& count) NIXL_REQUIRES(mutex_) NIXL_NO_TSA;
    Status syncSegments(const Batch& batch, uint16_t self);
    Status syncWriter(uint32_t log) NIXL_REQUIRES(mutex_);

    const std::string path_;
    const std::string root_;
    const DirectoryOptions options_;
    HashSecret secret_;
    mutable Mutex mutex_;
    Index index_ NIXL_GUARDED_BY(mutex_);
    std::vector<Segment> segments_ NIXL_GUARDED_BY(mutex_);
    std::vector<Log> logs_ NIXL_GUARDED_BY(mutex_);
    std::unordered_map<std::string, uint32_t> logByName_ NIXL_GUARDED_BY(mutex_);
    std::vector<std::string> droppedSegments_ NIXL_GUARDED_BY(mutex_);
    std::vector<Hole> freed_ NIXL_GUARDED_BY(mutex_);
    bool emptied_ NIXL_GUARDED_BY(mutex_) = false;  // a segment may have lost its last block
    std::atomic<bool> noHoles_{false};              // the file system knows none
    struct Owner {
        std::string name;
        uint64_t clearedUpTo = 0;
    };
    std::vector<Owner> owners_ NIXL_GUARDED_BY(mutex_);  // the first stands for those not known
    uint16_t lastOwner_ NIXL_GUARDED_BY(mutex_) = 0;     // whom the last record was of
    std::unordered_map<Fingerprint, uint64_t, FingerprintHash> gone_ NIXL_GUARDED_BY(mutex_);
    DirectoryStats stats_ NIXL_GUARDED_BY(mutex_);
    uint32_t writer_ NIXL_GUARDED_BY(mutex_) = kNone;   // the log new blocks go to
    uint32_t current_ NIXL_GUARDED_BY(mutex_) = kNone;  // the segment new blocks go to
    uint64_t reserved_ NIXL_GUARDED_BY(mutex_) = 0;     // bytes of held extents
    uint64_t lastVersion_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t clearedUpTo_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t collected_ NIXL_GUARDED_BY(mutex_) = 0;    // when collectStale was last at work
    uint64_t logsChanged_ NIXL_GUARDED_BY(mutex_) = 0;  // mtime of logs/ when last scanned
};

}  // namespace nixl::hicache
