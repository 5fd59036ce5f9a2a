// Registered files: the caller's descriptor, or a path whose descriptor lives in an LRU cache, so
// that any number of files can be registered under a small limit of open ones. I/O never uses the
// caller's number itself but a duplicate that was found to be the registered file, so closing the
// number, or its reuse, sends no bytes to another file.
//
// Threads: everything here is thread-safe after registration.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "nixl/backend.h"

#include "paths.h"

namespace nixl::posix {

class File;

// Descriptors of path files and of buffered twins; closes the least recently used ones that no
// request uses when there are more than `capacity`, or when the process runs out of them.
class FdCache {
  public:
    // One descriptor of a file; embedded in it.
    struct Entry {
        int fd = -1;
        unsigned pins = 0;
        bool keep = true;  // open while nobody uses it
        Entry* newer = nullptr;
        Entry* older = nullptr;
    };

    explicit FdCache(size_t capacity) : capacity_(capacity), process_(getpid()) {}
    // What else is to be done with each descriptor after opening (0 or an errno, then it is closed)
    // and before closing it. Set before the first use.
    std::function<int(int)> opened;
    std::function<void(int)> closing;

    // REQUEST: given back when one I/O ends; HOLD: at the end of a transfer, so that nobody who is
    // short of descriptors may wait for it.
    enum class Use : uint8_t { REQUEST, HOLD };

    // The descriptor of `entry`, pinned; opened by `open` (a descriptor or -errno) if it is not.
    int acquire(Entry& entry, const std::function<int()>& open, Use use = Use::REQUEST);
    void release(Entry& entry, Use use = Use::REQUEST);
    void forget(Entry& entry);                          // closes it; REQUIRES: not pinned
    unsigned pinned() const { return pinned_.load(); }  // by requests
    size_t openCount() const;

  private:
    void unlink(Entry& entry);
    void linkNewest(Entry& entry);
    bool evictOne();
    int openOne(const std::function<int()>& open) const;
    void closeOne(int fd) const;

    const size_t capacity_;
    const pid_t process_;  // a forked child leaves everything alone
    std::atomic<unsigned> pinned_{0};
    mutable std::mutex mutex_;  // guards what follows, and all entries
    Entry* newest_ = nullptr;
    Entry* oldest_ = nullptr;
    size_t open_ = 0;
};

// Of what O_DIRECT offsets and lengths, and addresses, are multiples; 0: it is not supported.
struct DirectAlign {
    uint32_t offset = 4096;
    uint32_t memory = 4096;
};
DirectAlign directAlign(int fd);

using LogInfo = std::function<void(const std::string&)>;

// A descriptor that another plugin has opened, and what it takes.
struct OpenedFile {
    int fd = -1;
    std::shared_ptr<void> owner;  // keeps it open
    std::string label;
    bool direct = false;       // opened with O_DIRECT
    uint32_t offsetAlign = 1;  // the owner lets nothing else through
    uint32_t memoryAlign = 1;
};

// How a plugin takes files.
struct FileOptions {
    const char* plugin = "POSIX";  // whose name messages bear
    // All I/O goes through the queue as it is, with any offset and memory.
    bool exact = false;
};

// One registered file.
class File final : public BackendMemory {
  public:
    static Result<std::unique_ptr<File>> open(const MemoryRegion& region,
                                              std::shared_ptr<FdCache> cache,
                                              const LogInfo& log,
                                              FileOptions options = {});
    static Result<std::unique_ptr<File>> adopt(OpenedFile opened,
                                               std::shared_ptr<FdCache> cache,
                                               const char* plugin);
    ~File() override;
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    std::string identity() const override;

    // A pinned descriptor or -errno; `twin`: the one without O_DIRECT.
    int acquire(bool twin);
    void release(bool twin);
    // The caller's file stays open until letGo(), whatever becomes of its number. 0 or an errno:
    // ESTALE where the number belongs to another file by now.
    int hold();
    void letGo() { cache_->release(main_, FdCache::Use::HOLD); }
    // Whether the path still names the file that was registered: 0 or an errno.
    int checkName() const;
    // The same, once for each `post`, a number that only grows. Of a caller's descriptor always 0.
    int checkName(uint64_t post);

    // Whether posts numbered `epoch` use O_DIRECT; refuseDirect() ends that for later ones.
    bool direct(uint64_t epoch) const {
        const uint64_t refused = refusedAt_.load(std::memory_order_relaxed);
        return direct_ && (refused == 0 || refused > epoch);
    }
    // True when a completion of somebody else's request may make room for acquire().
    bool othersPinned() const { return cache_->pinned() > 0; }
    static bool outOfDescriptors(int error) { return error == EMFILE || error == ENFILE; }
    // As acquire(), but -EAGAIN rather than opening the file.
    int acquireOpen(bool twin);
    // Whether the caller's number itself may be used, inside post.
    bool plainCallerFd() const { return callerOwned() && !direct_; }
    void refuseDirect(uint64_t epoch);
    // Offsets and lengths, and addresses, of O_DIRECT I/O are multiples of these.
    uint32_t offsetAlign() const { return offsetAlign_; }
    uint32_t memoryAlign() const { return memoryAlign_; }

    // The same for what can be moved with O_DIRECT at all; other bytes go through the page cache.
    uint32_t directUnit() const { return exact_ || offsetAlign_ > kPage ? offsetAlign_ : kPage; }

    bool callerOwned() const { return path_.empty() && owner_ == nullptr; }
    // Its descriptor is open without being asked for: the caller's or another plugin's.
    bool staysOpen() const { return path_.empty(); }
    int callerFd() const { return callerFd_; }
    const void* owner() const { return owner_.get(); }  // of an adopted one
    bool append() const { return append_; }
    bool writable() const { return flags_ != O_RDONLY; }
    bool sameRegularFile(const File& other) const {
        return regular_ && other.regular_ && device_ == other.device_ && inode_ == other.inode_;
    }
    // Fails when the caller's descriptor number belongs to another file by now.
    Status checkIdentity() const;
    Status changedHands() const;
    // "fd 12" or "/path".
    const std::string& label() const { return label_; }
    // Set where non-blocking buffered reads / writes turned out not to be supported.
    std::atomic<bool> noNowaitRead{false};
    std::atomic<bool> noNowaitWrite{false};

  private:
    // Bytes through the page cache and bytes with O_DIRECT never share a page: a page written back
    // late would undo direct writes next to it.
    static constexpr uint32_t kPage = 4096;

    File(std::shared_ptr<FdCache> cache, FileOptions options)
        : cache_(std::move(cache)), plugin_(options.plugin), exact_(options.exact) {}
    Status initCaller(const MemoryRegion& region, const LogInfo& log);
    Status initPath(const FileSpec& spec, const LogInfo& log);
    Status inspect(int fd, const LogInfo& log);
    void readAlignment(int fd);
    int openMain();
    int openTwin();
    int openChecked(const char* path, int flags) const;
    bool uses(bool twin) const { return twin && direct_; }
    int openDirect() const { return direct_ && !exact_ ? O_DIRECT : 0; }
    Status refused(const std::string& what, int error) const;
    int checked(int fd) const;

    const std::shared_ptr<FdCache> cache_;
    const char* const plugin_;
    const bool exact_;
    std::shared_ptr<void> owner_;
    std::string path_;
    std::string label_;
    int callerFd_ = -1;
    int flags_ = 0;  // for open, without O_CREAT
    bool direct_ = false;
    bool append_ = false;
    bool regular_ = false;
    uint32_t offsetAlign_ = 4096;
    uint32_t memoryAlign_ = 4096;
    dev_t device_ = 0;
    ino_t inode_ = 0;
    std::atomic<uint64_t> refusedAt_{0};
    std::atomic<uint64_t> nameChecked_{0};  // the last post that did
    FdCache::Entry main_;
    FdCache::Entry twin_;
};

// The caller's files that a transfer uses: held while it runs, all or none of them.
// Threads: one at a time.
class FileHolds {
  public:
    void add(File* file) { files_.push_back(file); }
    bool empty() const { return files_.empty(); }
    Status check() const;  // fails where a number belongs to another file
    // The same, and holds them. Where descriptors are short none is held; then each request finds
    // out by itself what the number means.
    Status take();
    void release();

  private:
    std::vector<File*> files_;
    std::vector<File*> held_;
};

}  // namespace nixl::posix
