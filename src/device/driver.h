// The functions of the CUDA driver that are used, and what is kept of each GPU. One table for the
// process, opened at run time.
//
// Threads: thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "nixl/device.h"

#include "base/mutex.h"

namespace nixl::device {

inline constexpr int kMaxDevices = 64;
inline constexpr int kNotReady = 600;  // CUDA_ERROR_NOT_READY
inline constexpr int kRelaxed = 2;     // CU_STREAM_CAPTURE_MODE_RELAXED

// As cuda.h has them.
struct MemLocation {
    int type = 1;  // CU_MEM_LOCATION_TYPE_DEVICE
    int id = 0;
};
struct MemProperties {
    int type = 1;         // CU_MEM_ALLOCATION_TYPE_PINNED
    int handleTypes = 1;  // a file descriptor
    MemLocation location;
    void* windows = nullptr;
    uint8_t compression = 0;
    uint8_t rdma = 0;
    uint16_t usage = 0;
    uint8_t reserved[4] = {};
};
struct MemAccess {
    MemLocation location;
    int flags = 3;  // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
};
struct IpcHandle {
    char bytes[64];
};

using Context = void*;
using Stream = void*;
using Event = void*;
using Address = uint64_t;
using MemHandle = unsigned long long;

// X(member, symbol, parameters): what must be there.
#define NIXL_CUDA_FUNCTIONS(X)                                                                  \
    X(init, "cuInit", (unsigned))                                                               \
    X(driverVersion, "cuDriverGetVersion", (int*))                                              \
    X(errorString, "cuGetErrorString", (int, const char**))                                     \
    X(deviceCount, "cuDeviceGetCount", (int*))                                                  \
    X(deviceGet, "cuDeviceGet", (int*, int))                                                    \
    X(deviceName, "cuDeviceGetName", (char*, int, int))                                         \
    X(deviceBytes, "cuDeviceTotalMem_v2", (size_t*, int))                                       \
    X(deviceUuid, "cuDeviceGetUuid", (void*, int))                                              \
    X(devicePci, "cuDeviceGetPCIBusId", (char*, int, int))                                      \
    X(canAccessPeer, "cuDeviceCanAccessPeer", (int*, int, int))                                 \
    X(retain, "cuDevicePrimaryCtxRetain", (Context*, int))                                      \
    X(push, "cuCtxPushCurrent_v2", (Context))                                                   \
    X(pop, "cuCtxPopCurrent_v2", (Context*))                                                    \
    X(attributes, "cuPointerGetAttributes", (unsigned, int*, void**, Address))                  \
    X(copy, "cuMemcpyAsync", (Address, Address, size_t, Stream))                                \
    X(streamCreate, "cuStreamCreate", (Stream*, unsigned))                                      \
    X(streamDestroy, "cuStreamDestroy_v2", (Stream))                                            \
    X(eventCreate, "cuEventCreate", (Event*, unsigned))                                         \
    X(eventRecord, "cuEventRecord", (Event, Stream))                                            \
    X(eventQuery, "cuEventQuery", (Event))                                                      \
    X(eventSynchronize, "cuEventSynchronize", (Event))                                          \
    X(eventDestroy, "cuEventDestroy_v2", (Event))                                               \
    X(hostAlloc, "cuMemHostAlloc", (void**, size_t, unsigned))                                  \
    X(hostFree, "cuMemFreeHost", (void*))                                                       \
    X(hostRegister, "cuMemHostRegister_v2", (void*, size_t, unsigned))                          \
    X(hostUnregister, "cuMemHostUnregister", (void*))                                           \
    X(ipcGet, "cuIpcGetMemHandle", (IpcHandle*, Address))                                       \
    X(ipcOpen, "cuIpcOpenMemHandle_v2", (Address*, IpcHandle, unsigned))                        \
    X(ipcClose, "cuIpcCloseMemHandle", (Address))                                               \
    X(granularity, "cuMemGetAllocationGranularity", (size_t*, const MemProperties*, int))       \
    X(memCreate, "cuMemCreate", (MemHandle*, size_t, const MemProperties*, unsigned long long)) \
    X(memRelease, "cuMemRelease", (MemHandle))                                                  \
    X(reserve, "cuMemAddressReserve", (Address*, size_t, size_t, Address, unsigned long long))  \
    X(addressFree, "cuMemAddressFree", (Address, size_t))                                       \
    X(map, "cuMemMap", (Address, size_t, size_t, MemHandle, unsigned long long))                \
    X(unmap, "cuMemUnmap", (Address, size_t))                                                   \
    X(setAccess, "cuMemSetAccess", (Address, size_t, const MemAccess*, size_t))                 \
    X(exportFd, "cuMemExportToShareableHandle", (void*, MemHandle, int, unsigned long long))    \
    X(importFd, "cuMemImportFromShareableHandle", (MemHandle*, void*, int))                     \
    X(retainHandle, "cuMemRetainAllocationHandle", (MemHandle*, void*))

// What a batch takes and gives back.
struct Lane {
    Stream stream = nullptr;
    Event event = nullptr;
};

class Driver {
  public:
    // Null with the reason where there is no usable driver; then the next call tries again. Lives
    // as long as the process.
    static Driver* get(std::string& reason);

// NOLINTNEXTLINE(bugprone-macro-parentheses): a name and a list of types
#define NIXL_CUDA_MEMBER(member, symbol, parameters) int(*member) parameters = nullptr;
    NIXL_CUDA_FUNCTIONS(NIXL_CUDA_MEMBER)
#undef NIXL_CUDA_MEMBER

    // False in a forked child of the process it belongs to: there nothing may be called.
    bool mine() const noexcept;
    // "cuInit: no CUDA-capable device is detected".
    std::string text(const char* call, int result) const;
    Status failure(const char* call, int result) const;

    // Sets how much the calling thread respects graphs that others capture; gives what it was.
    // Relaxed, it spoils none of them.
    int captureMode(int mode) const;

    // The primary context of a GPU, retained once.
    Result<Context> context(int device);
    Result<Lane> takeLane(int device);
    void giveLane(int device, Lane lane, bool good);

    // Page-locked buffers given back (staging.cpp).
    Mutex stagingMutex;
    std::map<uint64_t, std::vector<void*>> stagingFree NIXL_GUARDED_BY(stagingMutex);
    uint64_t stagingKept NIXL_GUARDED_BY(stagingMutex) = 0;

    // What other processes exported and is mapped here, by handle (memory.cpp).
    Mutex importMutex;
    std::map<std::array<uint8_t, 64>, std::weak_ptr<DeviceMemory>> imports
        NIXL_GUARDED_BY(importMutex);

  private:
    explicit Driver(pid_t process) : process_(process) {}
    static Driver* open(std::string& reason);
    const char* load(void* library);

    struct Gpu {
        std::atomic<Context> context{nullptr};
        Mutex mutex;
        std::vector<Lane> lanes NIXL_GUARDED_BY(mutex);
    };
    int (*exchangeCaptureMode_)(int*) = nullptr;  // may be missing
    const pid_t process_;
    std::array<Gpu, kMaxDevices> gpus_;
};

}  // namespace nixl::device
