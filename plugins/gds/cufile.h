// libcufile, found and opened at run time, and its driver: opened once for each process, never
// closed. The declarations are our own; they follow the published C interface.
//
// Threads: everything here is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include <sys/types.h>

#include "nixl/error.h"

namespace nixl::gds {

struct CuFileError {
    int code = 0;  // 0, or one of 5001…
    int cuda = 0;  // the CUDA driver's, where code is 5011
};

struct CuFileDescriptor {
    int type = 1;  // 1: a descriptor of the system
    union {
        int fd;
        void* handle;
    } of{};
    const void* operations = nullptr;
};

enum class CuFileOp : int { READ = 0, WRITE = 1 };

// One request of a batch.
struct CuFileRequest {
    int mode = 1;
    struct {
        void* memory;
        off_t fileOffset;
        off_t memoryOffset;
        size_t size;
    } io{};
    void* file = nullptr;
    CuFileOp op = CuFileOp::READ;
    void* cookie = nullptr;
};

inline constexpr int kCuFileRegistered = 5023;  // by somebody else already: as good
inline constexpr int kCuFileComplete = 0x10;

struct CuFileEvent {
    void* cookie = nullptr;
    int status = 0;
    size_t result = 0;  // bytes, or a negative error
};

struct CuFileProperties {
    unsigned nvfsMajor;
    unsigned nvfsMinor;
    size_t pollThreshold;
    size_t maxDirectIo;
    unsigned fileSystems;
    unsigned control;
    unsigned features;
    unsigned maxDeviceCache;
    unsigned perBufferCache;
    unsigned maxPinned;
    unsigned maxBatch;
    unsigned batchTimeout;
    char reserved[256];  // what later releases add
};

inline constexpr unsigned kCuFileControlCompat = 1U << 1;  // of `control`
inline constexpr unsigned kCuFileFeatureP2p = 1U << 4;     // of `features`

// The functions used.
struct CuFile {
    std::string path;
    std::string version;  // "1.20.0", or "unknown"

    CuFileError (*driverOpen)() = nullptr;
    CuFileError (*driverGetProperties)(CuFileProperties*) = nullptr;
    CuFileError (*handleRegister)(void**, CuFileDescriptor*) = nullptr;
    void (*handleDeregister)(void*) = nullptr;
    CuFileError (*bufRegister)(const void*, size_t, int) = nullptr;
    CuFileError (*bufDeregister)(const void*) = nullptr;
    ssize_t (*read)(void*, void*, size_t, off_t, off_t) = nullptr;
    ssize_t (*write)(void*, const void*, size_t, off_t, off_t) = nullptr;
    CuFileError (*batchSetUp)(void**, unsigned) = nullptr;
    CuFileError (*batchSubmit)(void*, unsigned, CuFileRequest*, unsigned) = nullptr;
    CuFileError (*batchGetStatus)(void*, unsigned, unsigned*, CuFileEvent*, timespec*) = nullptr;
    void (*batchDestroy)(void*) = nullptr;
};

// The library with its driver open.
struct CuFileDriver {
    const CuFile* library = nullptr;
    bool direct = false;      // bytes can go between a GPU and a device without host memory
    unsigned batchLimit = 0;  // requests of one batch; 0: not told
    std::string mode;         // "compat mode: …" or "direct: …", for people
};

// Opens the library and its driver in `seconds` at most. Every error says what was looked for
// where, or what the driver said. Tried again after a failure.
Result<const CuFileDriver*> openCuFile(double seconds);

// Folders below <site-packages> that hold the PyPI package, with this plugin somewhere below it.
std::vector<std::string> cuFilePackageFolders();

// "5008: GPU Direct Storage is not supported for this file" and the CUDA driver's number, if any.
std::string cuFileText(const CuFileError& error);
// The same for what a read or write returned: -1 with errno, or a negative code.
std::string cuFileText(ssize_t result, int system_errno);

}  // namespace nixl::gds
