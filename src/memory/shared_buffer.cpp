// See nixl/shared_buffer.h.
#include "nixl/shared_buffer.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/system_error.h"

namespace nixl {

namespace {

// Bytes of memory the system, and a control group around this process, still have.
uint64_t available() {
    uint64_t left = UINT64_MAX;
    std::ifstream info("/proc/meminfo");
    for (std::string word; info >> word;) {
        uint64_t kib = 0;
        if (word == "MemAvailable:" && info >> kib) {
            left = kib * 1024;
            break;
        }
    }
    std::ifstream most_file("/sys/fs/cgroup/memory.max");
    std::ifstream used_file("/sys/fs/cgroup/memory.current");
    uint64_t most = 0;
    uint64_t used = 0;
    if (most_file >> most && used_file >> used) {  // "max" is no number: no limit
        left = std::min(left, most > used ? most - used : 0);
    }
    return left;
}

[[noreturn]] void fail(const std::string& what, int error) {
    throw Error(base::systemError("nixl::alloc: " + what, error));
}

}  // namespace

SharedBuffer::~SharedBuffer() {
    if (data_ != nullptr) {
        munmap(data_, size_);
    }
    if (file_ >= 0) {
        close(file_);
    }
}

SharedBuffer alloc(size_t size) {
    if (size == 0) {
        throw Error(Status::invalidParam("nixl::alloc: size=0: must be at least 1"));
    }
    if (const uint64_t left = available(); size > left) {
        fail(std::to_string(size) + " bytes, of " + std::to_string(left) + " available", ENOSPC);
    }
    SharedBuffer buffer;
    buffer.file_ = memfd_create("nixl", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (buffer.file_ < 0) {
        fail("memfd_create", errno);
    }
    if (const int error = posix_fallocate(buffer.file_, 0, static_cast<off_t>(size)); error != 0) {
        fail("allocating " + std::to_string(size) + " bytes", error);
    }
    if (fcntl(buffer.file_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
        fail("sealing", errno);
    }
    void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, buffer.file_, 0);
    if (at == MAP_FAILED) {
        fail("mapping " + std::to_string(size) + " bytes", errno);
    }
    buffer.data_ = at;
    buffer.size_ = size;
    return buffer;
}

}  // namespace nixl
