// Stands in for the 3FS client (libhf3fs_api_shared.so) in tests: its published C interface over a
// plain folder. A folder that holds `3fs-virt/iovs` is a mount. Requests are served by threads,
// which find memory as the file system's process does: by the links in that folder, mapped anew.
//
// NIXL_HF3FS_STANDIN, read when a ring is made, is a list such as "threads=2,fail_every=7,errno=5":
//   threads=N      that serve a ring (4)
//   fail_every=N   every N-th request ends with -errno (5)
//   short_every=N  every N-th request moves half of its bytes
//   prep_every=N   every N-th hf3fs_prep_io says -errno
//   fail_at=N      requests that hold byte N of their file end with -errno
//   delay_us=N     each request takes so long
//
// Thread-safe beyond what the real one promises.
#include <cerrno>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

// NOLINTBEGIN(readability-identifier-naming): the names of the client, and of its options
#define API extern "C" __attribute__((visibility("default")))

struct hf3fs_iov {
    uint8_t* base;
    void* iovh;
    char id[16];
    char mount_point[256];
    size_t size;
    size_t block_size;
    int numa;
};
struct hf3fs_ior {
    hf3fs_iov iov;
    void* iorh;
    char mount_point[256];
    bool for_read;
    int io_depth;
    int priority;
    int timeout;
    uint64_t flags;
};
struct hf3fs_cqe {
    int32_t index;
    int32_t reserved;
    int64_t result;
    const void* userdata;
};

namespace {

std::string hexOf(const char* id) {
    std::string text;
    char two[3];
    for (int i = 0; i < 16; ++i) {
        snprintf(two, sizeof(two), "%02x", static_cast<unsigned char>(id[i]));
        text += (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") + std::string(two);
    }
    return text;
}

std::string linkOf(const std::string& mount, const char* id) {
    return mount + "/3fs-virt/iovs/" + hexOf(id);
}

// The mount above a path; empty where there is none.
std::string mountOf(std::string path) {
    while (!path.empty()) {
        struct stat info {};
        if (stat((path + "/3fs-virt/iovs").c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
            return path;
        }
        path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
    return {};
}

// What the file system's process has mapped of one iov.
struct Mapped {
    uint8_t* base = nullptr;
    size_t size = 0;
    ~Mapped() {
        if (base != nullptr) {
            munmap(base, size);
        }
    }
};

std::shared_ptr<Mapped> mapByLink(const std::string& link) {
    char target[PATH_MAX] = {};
    const ssize_t length = readlink(link.c_str(), target, sizeof(target) - 1);
    if (length <= 0 || strncmp(target, "/dev/shm/", 9) != 0) {
        return nullptr;
    }
    const int fd = open(target, O_RDWR | O_CLOEXEC);
    struct stat info {};
    auto mapped = std::make_shared<Mapped>();
    if (fd >= 0 && fstat(fd, &info) == 0 && info.st_size > 0) {
        const auto size = static_cast<size_t>(info.st_size);
        void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (memory != MAP_FAILED) {
            mapped->base = static_cast<uint8_t*>(memory);
            mapped->size = size;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return mapped->base != nullptr ? mapped : nullptr;
}

struct Options {
    long threads = 4, fail_every = 0, short_every = 0, prep_every = 0, error = EIO, fail_at = -1,
         delay_us = 0;

    Options() {
        const char* const text = getenv("NIXL_HF3FS_STANDIN");
        const auto number = [text](const char* key, long& value) {
            const char* const at = text == nullptr ? nullptr : strstr(text, key);
            value = at == nullptr ? value : strtol(at + strlen(key), nullptr, 10);
        };
        number("threads=", threads);
        number("fail_every=", fail_every);
        number("short_every=", short_every);
        number("prep_every=", prep_every);
        number("errno=", error);
        number("fail_at=", fail_at);
        number("delay_us=", delay_us);
    }
};

struct RegisteredFd {
    explicit RegisteredFd(int own) : copy(own) {}
    ~RegisteredFd() { close(copy); }
    RegisteredFd(const RegisteredFd&) = delete;
    RegisteredFd& operator=(const RegisteredFd&) = delete;
    const int copy;
};

std::mutex fds_mutex;
std::map<int, std::shared_ptr<RegisteredFd>>& fds() {
    static auto* const all = new std::map<int, std::shared_ptr<RegisteredFd>>;
    return *all;
}

struct Request {
    int index = 0;
    bool read = false;
    std::string link;
    size_t memory_offset = 0;
    std::shared_ptr<RegisteredFd> file;
    off_t offset = 0;
    size_t length = 0;
    const void* userdata = nullptr;
};

class Ring {
  public:
    explicit Ring(int entries) {
        for (int i = entries; i > 0; --i) {
            slots_.push_back(i - 1);
        }
        for (long i = 0; i < options_.threads; ++i) {
            threads_.emplace_back([this] { serve(); });
        }
    }
    ~Ring() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
            work_.notify_all();
        }
        for (std::thread& thread : threads_) {
            thread.join();
        }
    }

    int prepare(Request request) {
        const std::lock_guard lock(mutex_);
        if (options_.prep_every > 0 && ++prepared_count_ % options_.prep_every == 0) {
            return static_cast<int>(-options_.error);
        }
        if (slots_.empty()) {
            return -EAGAIN;
        }
        request.index = slots_.back();
        slots_.pop_back();
        const int index = request.index;
        prepared_.push_back(std::move(request));
        return index;
    }
    void submit() {
        const std::lock_guard lock(mutex_);
        for (Request& request : prepared_) {
            submitted_.push_back(std::move(request));
        }
        prepared_.clear();
        work_.notify_all();
    }
    int wait(hf3fs_cqe* out, int count, int least, const timespec* until) {
        std::unique_lock lock(mutex_);
        const auto enough = [this, least] { return static_cast<int>(ended_.size()) >= least; };
        if (until == nullptr) {
            done_.wait(lock, enough);
        } else {
            const auto when = std::chrono::system_clock::time_point(
                std::chrono::seconds(until->tv_sec) + std::chrono::nanoseconds(until->tv_nsec));
            done_.wait_until(lock, when, enough);
        }
        int filled = 0;
        while (filled < count && !ended_.empty()) {
            out[filled] = ended_.front();
            slots_.push_back(out[filled].index);
            ended_.pop_front();
            ++filled;
        }
        return filled;
    }

  private:
    void serve() {
        std::unique_lock lock(mutex_);
        for (;;) {
            work_.wait(lock, [this] { return stop_ || !submitted_.empty(); });
            if (submitted_.empty()) {
                return;
            }
            const Request request = std::move(submitted_.front());
            submitted_.pop_front();
            const long number = ++served_;
            std::shared_ptr<Mapped>& mapped = mapped_[request.link];
            if (mapped == nullptr) {
                mapped = mapByLink(request.link);
            }
            const std::shared_ptr<Mapped> memory = mapped;
            lock.unlock();
            const int64_t result = move(request, memory.get(), number);
            lock.lock();
            ended_.push_back({request.index, 0, result, request.userdata});
            done_.notify_all();
        }
    }

    int64_t move(const Request& request, const Mapped* memory, long number) const {
        if (options_.delay_us > 0) {
            // sleeps: what a slow file system would do
            std::this_thread::sleep_for(std::chrono::microseconds(options_.delay_us));
        }
        const auto holds = [&request](long at) {
            return at >= request.offset &&
                   static_cast<size_t>(at - request.offset) < request.length;
        };
        if ((options_.fail_every > 0 && number % options_.fail_every == 0) ||
            (options_.fail_at >= 0 && holds(options_.fail_at))) {
            return -options_.error;
        }
        if (memory == nullptr || request.memory_offset + request.length > memory->size) {
            return -EFAULT;
        }
        size_t length = request.length;
        if (options_.short_every > 0 && number % options_.short_every == 0 && length > 1) {
            length /= 2;
        }
        uint8_t* const at = memory->base + request.memory_offset;
        const ssize_t moved = request.read ? pread(request.file->copy, at, length, request.offset)
                                           : pwrite(request.file->copy, at, length, request.offset);
        return moved < 0 ? -errno : moved;
    }

    const Options options_;
    std::mutex mutex_;  // guards what follows
    std::condition_variable work_;
    std::condition_variable done_;
    std::vector<int> slots_;
    std::vector<Request> prepared_;
    std::deque<Request> submitted_;
    std::deque<hf3fs_cqe> ended_;
    std::map<std::string, std::shared_ptr<Mapped>> mapped_;
    long prepared_count_ = 0;
    long served_ = 0;
    bool stop_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace

API bool hf3fs_is_hf3fs(int fd) {
    char path[PATH_MAX] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    return readlink(link.c_str(), path, sizeof(path) - 1) > 0 && !mountOf(path).empty();
}

API int hf3fs_extract_mount_point(char* out, int size, const char* path) {
    char full[PATH_MAX] = {};
    const std::string mount = realpath(path, full) == nullptr ? "" : mountOf(full);
    if (mount.empty()) {
        return -1;
    }
    if (static_cast<int>(mount.size()) < size) {
        strcpy(out, mount.c_str());
    }
    return static_cast<int>(mount.size()) + 1;
}

API int hf3fs_iovwrap(hf3fs_iov* iov,
                      void* base,
                      const uint8_t* id,
                      const char* mount,
                      size_t size,
                      size_t block_size,
                      int numa) {
    if (iov == nullptr || strlen(mount) >= sizeof(iov->mount_point)) {
        return -EINVAL;
    }
    *iov = {};
    iov->base = static_cast<uint8_t*>(base);
    memcpy(iov->id, id, sizeof(iov->id));
    strcpy(iov->mount_point, mount);
    iov->size = size;
    iov->block_size = block_size;
    iov->numa = numa;
    return 0;
}

API int hf3fs_iovcreate(
    hf3fs_iov* iov, const char* mount, size_t size, size_t block_size, int numa) {
    uint8_t id[16];
    if (getrandom(id, sizeof(id), 0) != sizeof(id) || strlen(mount) >= sizeof(iov->mount_point)) {
        return -EINVAL;
    }
    const std::string file = "/dev/shm/hf3fs-iov-" + hexOf(reinterpret_cast<const char*>(id));
    const std::string link = linkOf(mount, reinterpret_cast<const char*>(id));
    const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    void* memory = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, static_cast<off_t>(size)) == 0) {
        memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (memory == MAP_FAILED || symlink(file.c_str(), link.c_str()) != 0) {
        const int error = errno;
        unlink(file.c_str());
        return -error;
    }
    hf3fs_iovwrap(iov, memory, id, mount, size, block_size, numa);
    iov->iovh = new std::string(file);
    return 0;
}

API void hf3fs_iovdestroy(hf3fs_iov* iov) {
    if (iov == nullptr || iov->iovh == nullptr) {
        return;
    }
    auto* const file = static_cast<std::string*>(iov->iovh);
    munmap(iov->base, iov->size);
    unlink(linkOf(iov->mount_point, iov->id).c_str());
    unlink(file->c_str());
    delete file;
    iov->iovh = nullptr;
}

API int hf3fs_iorcreate4(hf3fs_ior* ior,
                         const char* mount,
                         int entries,
                         bool for_read,
                         int io_depth,
                         int timeout,
                         int /*numa*/,
                         uint64_t flags) {
    if (ior == nullptr || mountOf(mount) != mount || entries <= 0 || timeout < 0) {
        return -EINVAL;
    }
    *ior = {};
    strncpy(ior->mount_point, mount, sizeof(ior->mount_point) - 1);
    ior->for_read = for_read;
    ior->io_depth = io_depth;
    ior->timeout = timeout;
    ior->flags = flags;
    ior->iorh = new Ring(entries);
    return 0;
}

API int hf3fs_iorcreate(
    hf3fs_ior* ior, const char* mount, int entries, bool for_read, int io_depth, int numa) {
    return hf3fs_iorcreate4(ior, mount, entries, for_read, io_depth, 0, numa, 0);
}

API void hf3fs_iordestroy(hf3fs_ior* ior) {
    delete static_cast<Ring*>(ior->iorh);
    ior->iorh = nullptr;
}

API int hf3fs_reg_fd(int fd, uint64_t /*flags*/) {
    if (!hf3fs_is_hf3fs(fd)) {
        return EBADF;
    }
    const std::lock_guard lock(fds_mutex);
    if (fds().contains(fd)) {
        return EINVAL;
    }
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
        return errno;
    }
    fds()[fd] = std::make_shared<RegisteredFd>(copy);
    return -copy;
}

API void hf3fs_dereg_fd(int fd) {
    const std::lock_guard lock(fds_mutex);
    fds().erase(fd);
}

API int hf3fs_prep_io(const hf3fs_ior* ior,
                      const hf3fs_iov* iov,
                      bool read,
                      void* memory,
                      int fd,
                      size_t offset,
                      uint64_t length,
                      const void* userdata) {
    auto* const at = static_cast<uint8_t*>(memory);
    if (ior == nullptr || read != ior->for_read || iov == nullptr || length == 0 ||
        at < iov->base || at + length > iov->base + iov->size) {
        return -EINVAL;
    }
    Request request;
    {
        const std::lock_guard lock(fds_mutex);
        const auto found = fds().find(fd);
        if (found == fds().end()) {
            return -EBADF;
        }
        request.file = found->second;
    }
    const int mode = fcntl(request.file->copy, F_GETFL) & O_ACCMODE;
    if (mode == (read ? O_WRONLY : O_RDONLY)) {
        return -EACCES;
    }
    request.read = read;
    request.link = linkOf(iov->mount_point, iov->id);
    request.memory_offset = static_cast<size_t>(at - iov->base);
    request.offset = static_cast<off_t>(offset);
    request.length = length;
    request.userdata = userdata;
    return static_cast<Ring*>(ior->iorh)->prepare(std::move(request));
}

API int hf3fs_submit_ios(const hf3fs_ior* ior) {
    static_cast<Ring*>(ior->iorh)->submit();
    return 0;
}

API int hf3fs_wait_for_ios(
    const hf3fs_ior* ior, hf3fs_cqe* ends, int count, int least, const timespec* until) {
    if (count <= 0) {
        return -EINVAL;
    }
    return static_cast<Ring*>(ior->iorh)->wait(ends, count, least, until);
}

// NOLINTEND(readability-identifier-naming)
