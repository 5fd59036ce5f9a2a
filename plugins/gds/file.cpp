// Opening, sharing and naming registered files; see file.h.
#include "file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>

namespace nixl::gds {

namespace {

constexpr size_t kFdsOfHandle = 2;  // ours, and the one that cuFile opens beside it

// Never waits for the other end of a pipe: what it is shows afterwards.
int openRetrying(const char* path, int flags) {
    int fd = -1;
    do {
        fd = ::open(path, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0666);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return -errno;
    }
    fcntl(fd, F_SETFL, flags & O_DIRECT);  // cuFile takes none that does not block
    return fd;
}

// By path: with O_DIRECT where the file system takes it, which is what GPU Direct Storage needs.
int openPath(const std::string& path, int flags) {
    const int fd = openRetrying(path.c_str(), flags | O_DIRECT);
    return fd == -EINVAL ? openRetrying(path.c_str(), flags) : fd;
}

Status refused(const std::string& what, int error) {
    const auto code = error == ENOENT || error == ENOTDIR                   ? ErrorCode::NOT_FOUND
                      : error == EACCES || error == EPERM || error == EROFS ? ErrorCode::NOT_ALLOWED
                                                                            : ErrorCode::BACKEND;
    return {code, "register " + what + ": " + errnoText(error), error};
}

std::string kindOf(mode_t mode) {
    return S_ISDIR(mode)    ? "a directory"
           : S_ISFIFO(mode) ? "a pipe"
           : S_ISSOCK(mode) ? "a socket"
           : S_ISCHR(mode)  ? "a character device"
                            : "of an unknown type";
}

}  // namespace

std::string errnoText(int error) {
    char buffer[128];
    return std::string(strerror_r(error, buffer, sizeof(buffer))) + " (errno " +
           std::to_string(error) + ")";
}

FileTable::~FileTable() {
    if (getpid() != process_) {
        return;
    }
    for (OpenFile* file : idle_) {
        close(take(*file));
    }
}

std::shared_ptr<OpenFile> FileTable::share(const std::string& key,
                                           const std::function<std::shared_ptr<OpenFile>()>& make) {
    const std::lock_guard lock(mutex_);
    std::weak_ptr<OpenFile>& known = files_[key];
    std::shared_ptr<OpenFile> file = known.lock();
    if (file == nullptr) {
        // The last registration closes it.
        std::shared_ptr<OpenFile> made = make();
        OpenFile* const raw = made.get();
        file = std::shared_ptr<OpenFile>(raw, [this, made, key](OpenFile* gone) {
            forget(gone);
            const std::lock_guard forgetting(mutex_);
            const auto entry = files_.find(key);
            if (entry != files_.end() && entry->second.expired()) {
                files_.erase(entry);
            }
        });
        known = file;
    }
    return file;
}

// REQUIRES: the lock
FileTable::Closing FileTable::take(OpenFile& file) {
    const Closing closing{file.fd, file.handle};
    if (file.fd >= 0) {
        --open_;
    }
    file.fd = -1;
    file.handle = nullptr;
    return closing;
}

void FileTable::close(const Closing& closing) const {
    if (closing.handle != nullptr) {
        library_.handleDeregister(closing.handle);
    }
    if (closing.fd >= 0) {
        ::close(closing.fd);
    }
}

void FileTable::forget(OpenFile* file) {
    if (getpid() != process_) {
        return;  // the lock may have been held at the fork, and the handle is the parent's
    }
    Closing closing{-1, nullptr};
    {
        const std::lock_guard lock(mutex_);
        if (file->idle) {
            idle_.erase(*file->idle);
            file->idle.reset();
        }
        closing = take(*file);
    }
    close(closing);
}

// REQUIRES: the lock. Takes out what is beyond the capacity, the longest idle first.
std::vector<FileTable::Closing> FileTable::evict(size_t capacity) {
    std::vector<Closing> gone;
    while (open_ * kFdsOfHandle > capacity && !idle_.empty()) {
        OpenFile* const victim = idle_.back();
        idle_.pop_back();
        victim->idle.reset();
        gone.push_back(take(*victim));
    }
    return gone;
}

// Whether one more file may be opened; makes room for it.
bool FileTable::room(bool wait) {
    std::vector<Closing> gone;
    {
        std::unique_lock lock(mutex_);
        const auto free = [this] { return pinned_ == 0 || pinned_ * kFdsOfHandle < capacity_; };
        if (wait) {
            released_.wait(lock, free);
        } else if (!free()) {
            return false;
        }
        gone = evict(capacity_ - std::min(capacity_, kFdsOfHandle));
    }
    for (const Closing& closing : gone) {
        close(closing);
    }
    return true;
}

// REQUIRES: file.opening is held
Status FileTable::adopt(OpenFile& file, int fd) {
    CuFileDescriptor descriptor;
    descriptor.of.fd = fd;
    void* handle = nullptr;
    const CuFileError error = library_.handleRegister(&handle, &descriptor);
    if (error.code != 0) {
        ::close(fd);
        std::string text = file.label + ": cuFile refuses it: " + cuFileText(error);
        if (error.code == 5027 || error.code == 5008) {
            text +=
                "; the file system is not supported, or udev's data of its device "
                "(/run/udev/data) are missing; cufile.log says which";
        }
        return Status::notSupported(std::move(text));
    }
    const std::lock_guard lock(mutex_);
    file.fd = fd;
    file.handle = handle;
    ++open_;
    return {};
}

Status FileTable::adoptUnlessOpen(OpenFile& file, int fd) {
    {
        const std::lock_guard opening(file.opening);
        if (pin(file) != nullptr) {
            ::close(fd);
        } else {
            NIXL_RETURN_IF_ERROR(adopt(file, fd));
            pin(file);
        }
    }
    release(file);
    return {};
}

// Its handle, pinned, or null where it is not open.
void* FileTable::pin(OpenFile& file) {
    const std::lock_guard lock(mutex_);
    if (file.handle == nullptr) {
        return nullptr;
    }
    pinned_ += file.pins++ == 0 && !file.path.empty() ? 1 : 0;
    if (file.idle) {
        idle_.erase(*file.idle);
        file.idle.reset();
    }
    return file.handle;
}

Result<void*> FileTable::acquire(OpenFile& file, bool wait) {
    if (void* const handle = pin(file)) {
        return handle;
    }
    if (!room(wait)) {
        return nullptr;
    }
    const std::lock_guard opening(file.opening);
    if (void* const handle = pin(file)) {
        return handle;
    }
    const int fd = openPath(file.path, file.flags & ~O_DIRECT);
    if (fd < 0) {
        return Status(ErrorCode::BACKEND, errnoText(-fd), -fd);
    }
    struct stat info {};
    if (fstat(fd, &info) != 0 || info.st_dev != file.device || info.st_ino != file.inode) {
        ::close(fd);
        return Status(ErrorCode::BACKEND, errnoText(ESTALE), ESTALE);
    }
    NIXL_RETURN_IF_ERROR(adopt(file, fd));
    return pin(file);
}

void FileTable::release(OpenFile& file) {
    std::vector<Closing> gone;
    {
        const std::lock_guard lock(mutex_);
        if (--file.pins > 0 || file.path.empty()) {
            return;
        }
        --pinned_;
        idle_.push_front(&file);
        file.idle = idle_.begin();
        gone = evict(capacity_);
    }
    released_.notify_all();
    for (const Closing& closing : gone) {
        close(closing);
    }
}

size_t FileTable::openCount() const {
    const std::lock_guard lock(mutex_);
    return open_;
}

Result<std::unique_ptr<File>> File::open(const MemoryRegion& region,
                                         const std::optional<posix::FileSpec>& path,
                                         std::shared_ptr<FileTable> table,
                                         const LogInfo& log) {
    std::unique_ptr<File> file(new File(std::move(table)));
    NIXL_RETURN_IF_ERROR(path ? file->initPath(*path, log) : file->initCaller(region));
    return file;
}

Status File::initCaller(const MemoryRegion& region) {
    if (region.deviceId > INT32_MAX) {
        return Status::invalidParam("register fd " + std::to_string(region.deviceId) +
                                    ": no file descriptor (the device id of a file is one, unless "
                                    "its metadata names a path as \"rw:/path\")");
    }
    const int callers = static_cast<int>(region.deviceId);
    label_ = "fd " + std::to_string(callers);
    const int flags = fcntl(callers, F_GETFL);
    if (flags < 0) {
        return {ErrorCode::INVALID_PARAM,
                "register " + label_ + ": " + errnoText(errno) +
                    (region.metadata.empty() ? "" : " (its metadata is no \"rw:/path\")"),
                errno};
    }
    if ((flags & O_PATH) != 0) {
        return Status::invalidParam("register " + label_ + ": opened with O_PATH");
    }
    append_ = (flags & O_APPEND) != 0;
    const int kept = flags & (O_ACCMODE | O_DIRECT);
    int fd = fcntl(callers, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        return refused(label_, errno);
    }
    if ((flags & (O_APPEND | O_NONBLOCK)) != 0) {  // cuFile takes neither
        const int clean = openRetrying(("/proc/self/fd/" + std::to_string(fd)).c_str(), kept);
        ::close(fd);
        fd = clean;
        if (fd < 0) {
            return refused(label_, -fd);
        }
    }
    return share(fd, kept, {});
}

Status File::initPath(const posix::FileSpec& spec, const LogInfo& log) {
    label_ = spec.path;
    const int flags = (spec.write ? O_RDWR : O_RDONLY) | (spec.create ? O_CREAT : 0);
    const int fd = openPath(spec.path, flags);
    if (fd < 0) {
        return refused("\"" + spec.path + "\"", -fd);
    }
    const bool direct = (fcntl(fd, F_GETFL) & O_DIRECT) != 0;
    if (!direct) {
        log(label_ + ": its file system refuses O_DIRECT, going buffered");
    }
    return share(fd, (spec.write ? O_RDWR : O_RDONLY) | (direct ? O_DIRECT : 0), spec.path);
}

// Takes the descriptor over.
Status File::share(int fd, int flags, const std::string& path) {
    struct stat info {};
    Status status;
    if (fstat(fd, &info) != 0) {
        status = refused(label_, errno);
    } else if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
        status = Status::invalidParam("register " + label_ + ": it is " + kindOf(info.st_mode) +
                                      "; a file or block device is needed");
    }
    if (!status.ok()) {
        ::close(fd);
        return status;
    }
    flags_ = flags;
    key_ = (path.empty() ? "fd " : "path ") + std::to_string(info.st_dev) + ":" +
           std::to_string(info.st_ino) + ":" + std::to_string(flags & O_ACCMODE) +
           ((flags & O_DIRECT) != 0 ? "d" : "");
    file_ = table_->share(key_ + path, [&] {
        auto made = std::make_shared<OpenFile>();
        made->device = info.st_dev;
        made->inode = info.st_ino;
        made->flags = flags;
        made->path = path;
        made->label = label_;
        return made;
    });
    status = table_->adoptUnlessOpen(*file_, fd);
    return status.ok() ? status : Status(status.code(), "register " + status.message());
}

int File::checkName(uint64_t post) {
    if (file_->path.empty() || nameChecked_.load(std::memory_order_relaxed) == post) {
        return 0;
    }
    struct stat info {};
    if (stat(file_->path.c_str(), &info) != 0) {
        return errno;
    }
    if (info.st_dev != file_->device || info.st_ino != file_->inode) {
        return ESTALE;
    }
    nameChecked_.store(post, std::memory_order_relaxed);
    return 0;
}

std::string File::refuses(OpType op) const {
    const int mode = flags_ & O_ACCMODE;
    if (op == OpType::WRITE && append_) {
        return "opened with O_APPEND, which ignores offsets";
    }
    if (op == OpType::WRITE && mode == O_RDONLY) {
        return "opened for reading only";
    }
    return op == OpType::READ && mode == O_WRONLY ? "opened for writing only" : "";
}

}  // namespace nixl::gds
