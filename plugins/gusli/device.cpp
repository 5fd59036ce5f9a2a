// Opening and inspecting devices; see device.h.
#include "device.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix/engine.h"
#include "posix/file.h"

namespace nixl::gusli {

namespace {

constexpr uint32_t kLeastBlock = 512;
constexpr uint32_t kClientBlock = 4096;         // the client takes no less
constexpr uint32_t kMostClientBlock = 1 << 20;  // the size of a buffer

int openRetrying(const char* path, int flags) {
    int fd = -1;
    do {
        fd = ::open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

const char* kindOf(mode_t mode) {
    return S_ISREG(mode)    ? "a plain file"
           : S_ISDIR(mode)  ? "a directory"
           : S_ISBLK(mode)  ? "a block device"
           : S_ISCHR(mode)  ? "a character device"
           : S_ISFIFO(mode) ? "a pipe"
                            : "a socket";
}

}  // namespace

Device::Device(DeviceConfig config)
    : config_(std::move(config)), label_("device " + config_.id + " (\"" + config_.path + "\")") {}

Device::~Device() {
    if (fd_ >= 0) {
        close(fd_);
    }
}

Status Device::failed(const std::string& what, int error) const {
    const auto code = error == ENOENT || error == ENOTDIR                   ? ErrorCode::NOT_FOUND
                      : error == EACCES || error == EPERM || error == EROFS ? ErrorCode::NOT_ALLOWED
                                                                            : ErrorCode::BACKEND;
    return {code, "GUSLI: " + label_ + ": " + what + posix::errnoText(error), error};
}

Result<std::shared_ptr<Device>> Device::open(const DeviceConfig& config) {
    std::shared_ptr<Device> device(new Device(config));
    NIXL_RETURN_IF_ERROR(device->openPath());
    NIXL_RETURN_IF_ERROR(device->inspect());
    NIXL_RETURN_IF_ERROR(device->lock());
    return device;
}

Result<std::shared_ptr<Device>> Device::ofClient(const DeviceConfig& config,
                                                 const NixlGusliDevice& connected) {
    std::shared_ptr<Device> device(new Device(config));
    const uint32_t block = std::max(connected.blockSize, kClientBlock);
    if (connected.descriptor < 0 || connected.blockSize == 0 || connected.blocks == 0) {
        return Status::backend("GUSLI: " + device->label_ + ": the GUSLI client says descriptor " +
                               std::to_string(connected.descriptor) + ", " +
                               std::to_string(connected.blocks) + " blocks of " +
                               std::to_string(connected.blockSize) + " bytes");
    }
    if (kMostClientBlock % block != 0 || block % connected.blockSize != 0) {
        return Status::notSupported(
            "GUSLI: " + device->label_ + ": its blocks of " + std::to_string(connected.blockSize) +
            " bytes do not fill buffers of " + std::to_string(kMostClientBlock) + " bytes");
    }
    device->fd_ = memfd_create("nixl-gusli-device", MFD_CLOEXEC);
    if (device->fd_ < 0) {
        return device->failed("memfd_create: ", errno);
    }
    device->clientDescriptor_ = connected.descriptor;
    device->blockSize_ = block;
    device->memoryAlign_ = 1;  // all memory is copied
    device->bytes_ = connected.blocks > INT64_MAX / connected.blockSize
                         ? uint64_t{INT64_MAX}
                         : connected.blocks * connected.blockSize;
    return device;
}

// What it is comes first: opening a pipe or a tape has effects of its own.
Status Device::openPath() {
    struct stat info {};
    const bool there = stat(config_.path.c_str(), &info) == 0;
    if (!there && errno != ENOENT) {
        return failed("", errno);
    }
    const bool file = config_.kind == Kind::FILE;
    if (!there && (!file || !writable())) {
        return failed("", ENOENT);
    }
    if (there && file && !S_ISREG(info.st_mode)) {
        return Status::invalidParam("GUSLI: " + label_ + " is " + kindOf(info.st_mode) +
                                    "; kind F wants a plain file (kind K: a block device)");
    }
    if (there && !file && !S_ISBLK(info.st_mode) && !S_ISCHR(info.st_mode)) {
        return Status::invalidParam("GUSLI: " + label_ + " is " + kindOf(info.st_mode) +
                                    "; kind K wants a block device (kind F: a plain file)");
    }
    int flags = writable() ? O_RDWR : O_RDONLY;
    flags |= file && writable() ? O_CREAT : 0;
    flags |= !file && config_.access == Access::EXCLUSIVE && S_ISBLK(info.st_mode) ? O_EXCL : 0;
    fd_ = openRetrying(config_.path.c_str(), flags | O_DIRECT);
    if (fd_ == -EINVAL) {
        direct_ = false;
        fd_ = openRetrying(config_.path.c_str(), flags);
    }
    if (fd_ < 0) {
        return failed(fd_ == -EBUSY ? "exclusive access (X): " : "", -fd_);
    }
    fcntl(fd_, F_SETFL, direct_ ? O_DIRECT : 0);  // O_NONBLOCK does not stay
    return {};
}

Status Device::inspect() {
    struct stat info {};
    if (fstat(fd_, &info) < 0) {
        return failed("", errno);
    }
    if (S_ISBLK(info.st_mode)) {
        int sector = 0;
        if (ioctl(fd_, BLKSSZGET, &sector) < 0 || ioctl(fd_, BLKGETSIZE64, &bytes_) < 0) {
            return failed("asking its size: ", errno);
        }
        blockSize_ = std::max(static_cast<uint32_t>(sector), kLeastBlock);
        const uint32_t memory = posix::directAlign(fd_).memory;
        memoryAlign_ = memory != 0 ? memory : blockSize_;
        if (bytes_ == 0) {
            return Status::invalidParam("GUSLI: " + label_ +
                                        " has 0 bytes: nothing stands behind "
                                        "it (a loop device without a file?)");
        }
        return {};
    }
    if (S_ISCHR(info.st_mode)) {
        if (lseek(fd_, 0, SEEK_CUR) < 0) {
            return Status::invalidParam("GUSLI: " + label_ +
                                        " is a character device without offsets; kind K wants a "
                                        "block device");
        }
        bytes_ = INT64_MAX;
        return {};
    }
    grows_ = writable();
    if (direct_) {
        const posix::DirectAlign align = posix::directAlign(fd_);
        direct_ = align.offset != 0;
        fcntl(fd_, F_SETFL, direct_ ? O_DIRECT : 0);
        blockSize_ = std::max(align.offset, kLeastBlock);
        memoryAlign_ = std::max(align.memory, 1U);
    }
    return {};
}

// Files only: block devices have O_EXCL, and udev locks those itself.
Status Device::lock() const {
    if (config_.kind != Kind::FILE) {
        return {};
    }
    const bool exclusive = config_.access == Access::EXCLUSIVE;
    if (flock(fd_, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
        return {};  // a file system without locks has none to respect
    }
    return {ErrorCode::NOT_ALLOWED,
            "GUSLI: " + label_ +
                (exclusive ? " is in use; access X wants it alone" : " is used exclusively (X)"),
            EBUSY};
}

uint64_t Device::size() const {
    struct stat info {};
    return bytes_ != 0 || fstat(fd_, &info) < 0 ? bytes_ : static_cast<uint64_t>(info.st_size);
}

}  // namespace nixl::gusli
