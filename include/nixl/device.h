// GPU memory for lanes and plugins, by the CUDA driver. The core opens the driver (libcuda.so.1, or
// what NIXL_CUDA_LIBRARY names) when it is first needed; nothing is linked, and a process without a
// GPU pays nothing. A forked child opens it anew.
//
// Order: copies run on streams of their own, which wait for nobody. What the caller's kernels and
// copies do with the memory must be complete before a copy starts, on whatever stream it is; once
// a batch has ended without an error its bytes are in place for everybody.
//
// Threads: thread-safe. The thread that calls keeps the CUDA context it had.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nixl/error.h"

namespace nixl {

struct DeviceInfo {
    int id = 0;  // "cuda:<id>"
    std::string name;
    uint64_t bytes = 0;                  // memory in all
    std::string pciAddress;              // "0000:19:00.0"
    std::array<uint8_t, 16> identity{};  // the same in every process
};

// HOST: no memory of a GPU, be it page-locked, ordinary or not there at all.
enum class DeviceMemoryKind : uint8_t { HOST, DEVICE, MANAGED };

// What the driver knows of an address.
struct DeviceRange {
    DeviceMemoryKind kind = DeviceMemoryKind::HOST;
    bool pinned = false;  // HOST: page-locked, known to the driver
    int device = -1;
    uint64_t base = 0;  // of the allocation, or of the mapped piece, that holds the address
    uint64_t size = 0;
    uint64_t buffer = 0;  // differs between an allocation and a later one at its address
};

// Addresses of host or GPU; all live in one address space.
struct DeviceCopy {
    uint64_t to = 0;
    uint64_t from = 0;
    uint64_t size = 0;
};

// Copies under way. Its end waits for them.
class NIXL_API DeviceBatch {
  public:
    virtual ~DeviceBatch() = default;
    // Whether it has ended; never blocks.
    virtual bool poll() = 0;
    // Waits for the end and tells the outcome.
    virtual Status wait() = 0;
    // How many copies from the start of the list are known to be complete. REQUIRES: ended
    virtual size_t copied() const = 0;
    // Calls once at the end: in the thread of who polls or waits, in one of the core, or at once.
    // It must not block. At most one for a batch.
    virtual void then(std::function<void()> call) = 0;
};

// Page-locked host memory of a pool; its end gives it back.
class NIXL_API DeviceStaging {
  public:
    virtual ~DeviceStaging() = default;
    virtual void* data() const = 0;
    virtual uint64_t size() const = 0;
};

// GPU memory that was allocated or imported here; its end frees or unmaps it.
class NIXL_API DeviceMemory {
  public:
    virtual ~DeviceMemory() = default;
    virtual uint64_t address() const = 0;
    virtual uint64_t size() const = 0;
    virtual int device() const = 0;
};

// What another process of this host needs to map an allocation.
struct DeviceExport {
    std::array<uint8_t, 16> gpu{};     // DeviceInfo::identity
    std::array<uint8_t, 64> handle{};  // for the driver, where there is no file
    int fd = -1;                       // to hand over; whoever takes this struct closes it
    uint64_t base = 0;                 // of the allocation in the process that exports
    uint64_t size = 0;
};

class NIXL_API Devices {
  public:
    // Whether a driver seems to be here; cheap, opens nothing.
    virtual bool likely() = 0;
    // OK, or NOT_SUPPORTED with why there is no usable driver; then the next call tries again.
    virtual Status available() = 0;
    virtual Result<std::vector<DeviceInfo>> list() = 0;
    virtual Result<int> driverVersion() = 0;  // 13000 for CUDA 13.0

    virtual Result<DeviceRange> find(uint64_t address) = 0;
    // Whether all bytes are memory of GPU `device` (managed memory is any GPU's). The text names
    // the range and the cause.
    virtual Status check(uint64_t address, uint64_t size, uint64_t device) = 0;

    // Makes the primary context of a GPU the thread's current one; leave() brings back the one
    // before. See DeviceScope.
    virtual Status enter(int device) = 0;
    virtual void leave() = 0;

    // Starts copies on a stream of `device`, the GPU of at least one of the sides. Ordinary host
    // memory makes the call last as long as its copies. A copy that cannot be started ends the
    // batch early; those before it are done.
    virtual Result<std::shared_ptr<DeviceBatch>> copy(std::span<const DeviceCopy> copies,
                                                      int device) = 0;

    // At least `size` bytes; page-locked where the system allows.
    virtual Result<std::unique_ptr<DeviceStaging>> staging(int device, uint64_t size) = 0;
    // Page-locks memory of the caller for all GPUs, which makes copies faster.
    virtual Status pin(int device, void* host, uint64_t size) = 0;
    virtual void unpin(void* host) = 0;

    // New memory (whole pages of the GPU), which other processes can import.
    virtual Result<std::unique_ptr<DeviceMemory>> allocate(int device, uint64_t size) = 0;
    // NOT_SUPPORTED with the reason where the driver cannot share this memory.
    virtual Result<DeviceExport> exportMemory(uint64_t address, uint64_t size) = 0;
    // Maps what another process exported. The same allocation is mapped once. Closes the file.
    virtual Result<std::shared_ptr<DeviceMemory>> importMemory(const DeviceExport& from) = 0;

  protected:
    ~Devices() = default;
};

// Those of this process; the same object for all.
NIXL_API Devices& devices();

// A GPU's context for the calling thread until the end of the scope.
class DeviceScope {
  public:
    DeviceScope(Devices& devices, int device) : devices_(devices), status_(devices.enter(device)) {}
    ~DeviceScope() {
        if (status_.ok()) {
            devices_.leave();
        }
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;
    const Status& status() const { return status_; }

  private:
    Devices& devices_;
    const Status status_;
};

}  // namespace nixl
