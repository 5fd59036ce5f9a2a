// The 3FS client's C interface as this backend uses it (USRBIO), and how its library is opened. The
// structs are laid out as the library has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <string>

#include "nixl/error.h"

namespace nixl::hf3fs {

// Shared memory that the file system's process reads from and writes into.
struct Iov {
    uint8_t* base = nullptr;
    void* iovh = nullptr;
    char id[16] = {};
    char mountPoint[256] = {};
    size_t size = 0;
    size_t blockSize = 0;
    int numa = -1;
};

// A ring of requests of one direction.
struct Ior {
    Iov iov;
    void* iorh = nullptr;
    char mountPoint[256] = {};
    bool forRead = false;
    int ioDepth = 0;
    int priority = 0;
    int timeout = 0;
    uint64_t flags = 0;
};

struct Cqe {
    int32_t index = 0;
    int32_t reserved = 0;
    int64_t result = 0;  // bytes, or -errno
    const void* userdata = nullptr;
};

// The functions of the library; a process has one.
struct Library {
    bool (*isHf3fs)(int fd) = nullptr;
    // The length with the ending NUL, or -1 where the path is on no 3FS.
    int (*extractMountPoint)(char* out, int size, const char* path) = nullptr;
    int (*iovCreate)(Iov* iov, const char* mount, size_t size, size_t block_size, int numa) =
        nullptr;
    int (*iovWrap)(Iov* iov,
                   void* base,
                   const uint8_t* id,
                   const char* mount,
                   size_t size,
                   size_t block_size,
                   int numa) = nullptr;
    void (*iovDestroy)(Iov* iov) = nullptr;
    int (*iorCreate4)(Ior* ior,
                      const char* mount,
                      int entries,
                      bool for_read,
                      int io_depth,
                      int timeout,
                      int numa,
                      uint64_t flags) = nullptr;  // null in older libraries
    int (*iorCreate)(
        Ior* ior, const char* mount, int entries, bool for_read, int io_depth, int numa) = nullptr;
    void (*iorDestroy)(Ior* ior) = nullptr;
    int (*regFd)(int fd, uint64_t flags) = nullptr;  // above 0: an errno
    void (*deregFd)(int fd) = nullptr;
    // Below 0: -errno. One thread at a time, together with submitIos.
    int (*prepIo)(const Ior* ior,
                  const Iov* iov,
                  bool read,
                  void* memory,
                  int fd,
                  size_t offset,
                  uint64_t length,
                  const void* userdata) = nullptr;
    int (*submitIos)(const Ior* ior) = nullptr;
    // How many ended, or -errno. One thread at a time.
    int (*waitForIos)(const Ior* ior, Cqe* ends, int count, int at_least, const timespec* until) =
        nullptr;
    std::string path;
};

// Opens what NIXL_HF3FS_LIBRARY names, else libhf3fs_api_shared.so of the system; once it has
// worked, that one stays until the process ends.
Result<const Library*> openLibrary();

}  // namespace nixl::hf3fs
