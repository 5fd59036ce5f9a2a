// Registered files: the caller's descriptor, of which a duplicate is kept, or a path, whose handle
// lives in an LRU table. Registrations of one file that was opened the same way share one handle:
// cuFile takes a descriptor only once, and an open handle costs two of them.
//
// Threads: everything here is thread-safe after registration.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "nixl/backend.h"

#include "cufile.h"
#include "posix/paths.h"

namespace nixl::gds {

using LogInfo = std::function<void(const std::string&)>;

// A file as it was opened one way, with cuFile's handle of it.
struct OpenFile {
    dev_t device = 0;
    ino_t inode = 0;
    int flags = 0;     // for open
    std::string path;  // empty: the caller's; then it stays open
    std::string label;
    std::mutex opening;  // held while it is opened
    // Guarded by the table.
    int fd = -1;
    void* handle = nullptr;
    unsigned pins = 0;
    std::optional<std::list<OpenFile*>::iterator> idle;  // its place among the idle ones
};

// All open files of a backend.
class FileTable {
  public:
    FileTable(const CuFile& library, size_t capacity) : library_(library), capacity_(capacity) {}
    ~FileTable();
    FileTable(const FileTable&) = delete;
    FileTable& operator=(const FileTable&) = delete;

    // The entry of that key, made by `make` where there is none.
    std::shared_ptr<OpenFile> share(const std::string& key,
                                    const std::function<std::shared_ptr<OpenFile>()>& make);
    // Pins the file's handle, which is opened where it is not. Where as many are pinned as may be
    // open it waits for one of them, or is null.
    Result<void*> acquire(OpenFile& file, bool wait);
    void release(OpenFile& file);
    // Takes a descriptor over: of a file that is open already it is closed.
    Status adoptUnlessOpen(OpenFile& file, int fd);
    size_t openCount() const;

  private:
    struct Closing {
        int fd;
        void* handle;
    };
    void* pin(OpenFile& file);
    Status adopt(OpenFile& file, int fd);
    void forget(OpenFile* file);
    Closing take(OpenFile& file);
    void close(const Closing& closing) const;
    std::vector<Closing> evict(size_t capacity);
    bool room(bool wait);

    const CuFile& library_;
    const size_t capacity_;
    const pid_t process_ = getpid();  // a forked child leaves everything alone
    mutable std::mutex mutex_;        // guards what follows, and all entries
    std::map<std::string, std::weak_ptr<OpenFile>> files_;
    std::list<OpenFile*> idle_;  // open, by path, not pinned; the latest first
    size_t open_ = 0;
    size_t pinned_ = 0;  // files by path that are in use
    std::condition_variable released_;
};

// One registration.
class File final : public BackendMemory {
  public:
    // `path`: what the region's metadata names.
    static Result<std::unique_ptr<File>> open(const MemoryRegion& region,
                                              const std::optional<posix::FileSpec>& path,
                                              std::shared_ptr<FileTable> table,
                                              const LogInfo& log);
    ~File() override = default;
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    std::string identity() const override { return key_; }
    // Whether the path still names the file that was registered, asked once for each `post`, a
    // number that only grows: 0 or an errno. Of a caller's descriptor always 0.
    int checkName(uint64_t post);
    Result<void*> acquire(bool wait) { return table_->acquire(*file_, wait); }
    void release() { table_->release(*file_); }

    // Why it cannot be used so, or empty.
    std::string refuses(OpType op) const;
    // "fd 12" or "/path".
    const std::string& label() const { return label_; }

  private:
    explicit File(std::shared_ptr<FileTable> table) : table_(std::move(table)) {}
    Status initCaller(const MemoryRegion& region);
    Status initPath(const posix::FileSpec& spec, const LogInfo& log);
    Status share(int fd, int flags, const std::string& path);

    const std::shared_ptr<FileTable> table_;
    std::shared_ptr<OpenFile> file_;
    std::string label_;
    std::string key_;
    int flags_ = 0;
    bool append_ = false;
    std::atomic<uint64_t> nameChecked_{0};
};

std::string errnoText(int error);

}  // namespace nixl::gds
