// Opening, inspecting and naming registered files; see file.h.
#include "file.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "engine.h"

namespace nixl::posix {

namespace {

// statx as newer kernels give it; the C library's headers may be older.
constexpr unsigned kStatxDioAlign = 0x2000;
constexpr size_t kDioMemAlignAt = 0x98;     // stx_dio_mem_align
constexpr size_t kDioOffsetAlignAt = 0x9c;  // stx_dio_offset_align

// Never waits for the other end of a pipe: what it is shows afterwards. O_NONBLOCK does not stay,
// for io_uring would not wait for a file then.
int openRetrying(const char* path, int flags) {
    int fd = -1;
    do {
        fd = ::open(path, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0666);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return -errno;
    }
    fcntl(fd, F_SETFL, flags & O_DIRECT);
    return fd;
}

Status notAFile(const char* plugin, const std::string& what, mode_t mode) {
    const char* kind = S_ISDIR(mode)    ? "a directory"
                       : S_ISFIFO(mode) ? "a pipe"
                       : S_ISSOCK(mode) ? "a socket"
                                        : "not seekable";
    return Status::invalidParam(std::string(plugin) + ": register " + what + ": it is " + kind +
                                "; a file or block device is needed");
}

}  // namespace

Result<std::unique_ptr<File>> File::open(const MemoryRegion& region,
                                         std::shared_ptr<FdCache> cache,
                                         const LogInfo& log,
                                         FileOptions options) {
    Result<std::optional<FileSpec>> spec = parseFileSpec(region.metadata, options.plugin);
    if (!spec.ok()) {
        return spec.status();
    }
    const std::optional<FileSpec>& path = spec.value();
    std::unique_ptr<File> file(new File(std::move(cache), options));
    NIXL_RETURN_IF_ERROR(path ? file->initPath(*path, log) : file->initCaller(region, log));
    return file;
}

Result<std::unique_ptr<File>> File::adopt(OpenedFile opened,
                                          std::shared_ptr<FdCache> cache,
                                          const char* plugin) {
    std::unique_ptr<File> file(new File(std::move(cache), {plugin, true}));
    file->callerFd_ = opened.fd;
    file->owner_ = std::move(opened.owner);
    file->label_ = std::move(opened.label);
    file->flags_ = fcntl(opened.fd, F_GETFL) & O_ACCMODE;
    NIXL_RETURN_IF_ERROR(file->inspect(opened.fd, {}));
    file->direct_ = opened.direct;
    file->offsetAlign_ = opened.offsetAlign;
    file->memoryAlign_ = opened.memoryAlign;
    return file;
}

Status File::refused(const std::string& what, int error) const {
    const auto code = error == ENOENT || error == ENOTDIR                   ? ErrorCode::NOT_FOUND
                      : error == EACCES || error == EPERM || error == EROFS ? ErrorCode::NOT_ALLOWED
                                                                            : ErrorCode::BACKEND;
    return {code, std::string(plugin_) + ": register " + what + ": " + errnoText(error), error};
}

File::~File() {
    cache_->forget(main_);
    cache_->forget(twin_);
}

Status File::initCaller(const MemoryRegion& region, const LogInfo& log) {
    if (region.deviceId > INT32_MAX) {
        return Status::invalidParam(std::string(plugin_) + ": register fd " +
                                    std::to_string(region.deviceId) +
                                    ": no file descriptor (the device id of a file is one, unless "
                                    "its metadata names a path as \"rw:/path\")");
    }
    callerFd_ = static_cast<int>(region.deviceId);
    main_.keep = false;  // else a file that its owner closed and removed would keep its space
    label_ = "fd " + std::to_string(callerFd_);
    const int flags = fcntl(callerFd_, F_GETFL);
    if (flags < 0) {
        return Status(ErrorCode::INVALID_PARAM,
                      std::string(plugin_) + ": register " + label_ + ": " + errnoText(errno) +
                          (region.metadata.empty() ? "" : " (its metadata is no \"rw:/path\")"),
                      errno);
    }
    flags_ = flags & O_ACCMODE;
    append_ = (flags & O_APPEND) != 0;
    direct_ = (flags & O_DIRECT) != 0 && !exact_;
    if ((flags & O_PATH) != 0) {
        return Status::invalidParam(std::string(plugin_) + ": register " + label_ +
                                    ": opened with O_PATH");
    }
    return inspect(callerFd_, log);
}

Status File::initPath(const FileSpec& spec, const LogInfo& log) {
    path_ = spec.path;
    label_ = spec.path;
    flags_ = spec.write ? O_RDWR : O_RDONLY;
    direct_ = spec.direct && !exact_;
    const int create = spec.create ? O_CREAT : 0;
    const auto open = [&] {
        int fd = openRetrying(path_.c_str(), flags_ | create | (direct_ ? O_DIRECT : 0));
        if (fd == -EINVAL && direct_) {
            direct_ = false;
            fd = openRetrying(path_.c_str(), flags_ | create);
            if (fd >= 0) {
                log(std::string(plugin_) + ": " + label_ +
                    ": its file system refuses O_DIRECT, going buffered");
            }
        }
        return fd;
    };
    const int fd = cache_->acquire(main_, open);
    if (fd < 0) {
        return refused("\"" + path_ + "\"", -fd);
    }
    Status status = inspect(fd, log);
    cache_->release(main_);
    return status;
}

Status File::inspect(int fd, const LogInfo& log) {
    struct stat info {};
    if (fstat(fd, &info) < 0) {
        return refused(label_, errno);
    }
    device_ = info.st_dev;
    inode_ = info.st_ino;
    regular_ = S_ISREG(info.st_mode);
    const bool seekable = S_ISREG(info.st_mode) || S_ISBLK(info.st_mode) ||
                          (S_ISCHR(info.st_mode) && lseek(fd, 0, SEEK_CUR) >= 0);
    if (!seekable) {
        return notAFile(plugin_, label_, info.st_mode);
    }
    if (exact_) {
        direct_ = true;
        offsetAlign_ = 1;
        memoryAlign_ = 1;
    } else if (direct_) {
        readAlignment(fd);
        if (!direct(1)) {
            log(std::string(plugin_) + ": " + label_ +
                ": O_DIRECT is not supported for it, going buffered");
        }
    }
    return {};
}

DirectAlign directAlign(int fd) {
    alignas(8) unsigned char data[256] = {};
    DirectAlign found;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, kStatxDioAlign, data) == 0) {
        uint32_t mask = 0;
        std::memcpy(&mask, data, sizeof(mask));
        if ((mask & kStatxDioAlign) != 0) {
            std::memcpy(&found.memory, data + kDioMemAlignAt, sizeof(found.memory));
            std::memcpy(&found.offset, data + kDioOffsetAlignAt, sizeof(found.offset));
            return found.memory == 0 ? DirectAlign{0, 0} : found;
        }
    }
    int sector = 0;
    if (ioctl(fd, BLKSSZGET, &sector) == 0 && sector > 0) {
        found = {static_cast<uint32_t>(sector), static_cast<uint32_t>(sector)};
    }
    return found;
}

void File::readAlignment(int fd) {
    const DirectAlign align = directAlign(fd);
    offsetAlign_ = align.offset;
    memoryAlign_ = align.memory;
    if (align.offset == 0) {
        refuseDirect(1);  // the descriptor itself stays O_DIRECT: the twin is used
    }
}

// What a descriptor number means depends on how it was opened, a path does not.
std::string File::identity() const {
    const std::string file = std::to_string(device_) + ":" + std::to_string(inode_);
    if (!callerOwned()) {
        return "path " + file;
    }
    return "fd " + file + ":" + std::to_string(flags_) + (direct_ ? "d" : "") +
           (append_ ? "a" : "");
}

int File::checkName() const {
    struct stat info {};
    if (stat(path_.c_str(), &info) < 0) {
        return errno;
    }
    return info.st_dev == device_ && info.st_ino == inode_ ? 0 : ESTALE;
}

int File::checkName(uint64_t post) {
    if (staysOpen() || nameChecked_.load(std::memory_order_relaxed) == post) {
        return 0;
    }
    const int error = checkName();
    if (error == 0) {
        nameChecked_.store(post, std::memory_order_relaxed);
    }
    return error;
}

int File::hold() {
    const int fd = cache_->acquire(main_, [this] { return openMain(); }, FdCache::Use::HOLD);
    return fd < 0 ? -fd : 0;
}

int File::acquire(bool twin) {
    if (uses(twin)) {
        return exact_ ? -ENOTSUP : cache_->acquire(twin_, [this] { return openTwin(); });
    }
    return owner_ != nullptr ? callerFd_ : cache_->acquire(main_, [this] { return openMain(); });
}

int File::acquireOpen(bool twin) {
    return owner_ != nullptr ? callerFd_
                             : cache_->acquire(uses(twin) ? twin_ : main_, [] { return -EAGAIN; });
}

void File::release(bool twin) {
    if (owner_ == nullptr) {
        cache_->release(uses(twin) ? twin_ : main_);
    }
}

void File::refuseDirect(uint64_t epoch) {
    uint64_t none = 0;
    refusedAt_.compare_exchange_strong(none, epoch);
}

// Opens again what was inspected at registration: never another file that took its name.
int File::openChecked(const char* path, int flags) const {
    return checked(openRetrying(path, flags));
}

// `fd` where it is the registered file; else it is closed. Passes -errno through.
int File::checked(int fd) const {
    if (fd < 0) {
        return fd;
    }
    struct stat info {};
    const bool same = fstat(fd, &info) == 0 && info.st_dev == device_ && info.st_ino == inode_;
    if (!same) {
        close(fd);
        return -ESTALE;
    }
    return fd;
}

int File::openMain() {
    if (callerOwned()) {
        const int fd = fcntl(callerFd_, F_DUPFD_CLOEXEC, 0);
        return checked(fd < 0 ? -errno : fd);
    }
    return openChecked(path_.c_str(), flags_ | openDirect());
}

int File::openTwin() {
    if (!callerOwned()) {
        return openChecked(path_.c_str(), flags_);
    }
    const int held = acquire(false);
    if (held < 0) {
        return held;
    }
    const int fd = openChecked(("/proc/self/fd/" + std::to_string(held)).c_str(), flags_);
    release(false);
    return fd;
}

Status File::checkIdentity() const {
    struct stat info {};
    if (fstat(callerFd_, &info) < 0) {
        return {};  // the I/O itself will tell, on the descriptors it concerns
    }
    if (info.st_dev == device_ && info.st_ino == inode_) {
        return {};
    }
    return changedHands();
}

Status File::changedHands() const {
    return {ErrorCode::BACKEND,
            std::string(plugin_) + ": " + label_ +
                " was closed and now belongs to another file than the one that "
                "was registered; register the number anew, or deregister a file before closing it",
            EBADF};
}

Status FileHolds::check() const {
    for (const File* file : files_) {
        NIXL_RETURN_IF_ERROR(file->checkIdentity());
    }
    return {};
}

Status FileHolds::take() {
    for (File* file : files_) {
        const int error = file->hold();
        if (error == 0) {
            held_.push_back(file);
        } else if (error == ESTALE) {
            release();
            return file->changedHands();
        } else if (File::outOfDescriptors(error)) {
            release();
            return check();
        }  // else it is closed: the I/O itself will tell, on the descriptors it concerns
    }
    return {};
}

void FileHolds::release() {
    for (File* file : held_) {
        file->letGo();
    }
    held_.clear();
}

}  // namespace nixl::posix
