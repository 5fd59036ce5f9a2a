// GPU memory of our own, and of other processes; see nixl/device.h.
#include <algorithm>
#include <cstring>

#include <unistd.h>

#include "base/mutex.h"
#include "device/cuda_devices.h"
#include "device/devices.h"

namespace nixl::device {

namespace {

constexpr int kMinimum = 0;         // CU_MEM_ALLOC_GRANULARITY_MINIMUM
constexpr int kFd = 1;              // the handle type: a file descriptor
constexpr unsigned kLazyPeers = 1;  // CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS

// Addresses with memory behind them, by the driver's virtual memory calls.
class Mapped final : public DeviceMemory {
  public:
    Mapped(Driver& cuda, int device) : cuda_(cuda), device_(device) {}
    ~Mapped() override {
        if (!cuda_.mine()) {
            return;
        }
        const DeviceScope scope(devices(), device_);
        if (!scope.status().ok()) {
            return;
        }
        if (mapped_) {
            cuda_.unmap(address_, size_);
        }
        if (address_ != 0) {
            cuda_.addressFree(address_, size_);
        }
    }

    // Takes the handle over. REQUIRES: the GPU's context is current
    Status map(MemHandle handle, uint64_t size) {
        size_ = size;
        Status status = mapHandle(handle);
        cuda_.memRelease(handle);  // the mapping keeps the memory
        return status;
    }

    uint64_t address() const override { return address_; }
    uint64_t size() const override { return size_; }
    int device() const override { return device_; }

  private:
    Status mapHandle(MemHandle handle) {
        if (const int result = cuda_.reserve(&address_, size_, 0, 0, 0); result != 0) {
            address_ = 0;
            return cuda_.failure("cuMemAddressReserve", result);
        }
        if (const int result = cuda_.map(address_, size_, 0, handle, 0); result != 0) {
            return cuda_.failure("cuMemMap", result);
        }
        mapped_ = true;
        std::vector<MemAccess> access{{{1, device_}}};
        int count = 0;
        (void)cuda_.deviceCount(&count);
        for (int other = 0; other < count; ++other) {
            int can = 0;
            if (other != device_ && cuda_.canAccessPeer(&can, other, device_) == 0 && can != 0) {
                access.push_back({{1, other}});
            }
        }
        int result = cuda_.setAccess(address_, size_, access.data(), access.size());
        if (result != 0 && access.size() > 1) {
            result = cuda_.setAccess(address_, size_, access.data(), 1);
        }
        return result == 0 ? Status() : cuda_.failure("cuMemSetAccess", result);
    }

    Driver& cuda_;
    const int device_;
    Address address_ = 0;
    uint64_t size_ = 0;
    bool mapped_ = false;
};

// What cuIpcOpenMemHandle gave.
class Opened final : public DeviceMemory {
  public:
    Opened(Driver& cuda, int device, Address address, uint64_t size)
        : cuda_(cuda), device_(device), address_(address), size_(size) {}
    ~Opened() override;
    uint64_t address() const override { return address_; }
    uint64_t size() const override { return size_; }
    int device() const override { return device_; }

  private:
    Driver& cuda_;
    const int device_;
    const Address address_;
    const uint64_t size_;
};

Opened::~Opened() {
    const MutexLock lock(cuda_.importMutex);
    const DeviceScope scope(devices(), device_);
    if (cuda_.mine() && scope.status().ok()) {
        cuda_.ipcClose(address_);
    }
}

// The GPU of this identity here, whose number may be another one than where the memory comes from.
Result<int> ordinalOf(Devices& devices, const std::array<uint8_t, 16>& gpu) {
    Result<std::vector<DeviceInfo>> all = devices.list();
    if (!all.ok()) {
        return all.status();
    }
    for (const DeviceInfo& one : all.value()) {
        if (one.identity == gpu) {
            return one.id;
        }
    }
    return Status::notSupported("this process does not see the GPU that holds the memory");
}

MemProperties propertiesOf(int device) {
    MemProperties wanted;
    wanted.location.id = device;
    return wanted;
}

}  // namespace

Result<std::unique_ptr<DeviceMemory>> CudaDevices::allocate(int device, uint64_t size) {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    Driver& cuda = *found.value();
    const std::string what =
        "GPU memory of " + std::to_string(size) + " bytes on device " + std::to_string(device);
    if (size == 0) {
        return Status::invalidParam(what + ": the size must be at least 1");
    }
    const DeviceScope scope(*this, device);
    if (!scope.status().ok()) {
        return Status(scope.status().code(), what + ": " + scope.status().message());
    }
    MemProperties wanted = propertiesOf(device);
    wanted.rdma = 1;
    size_t page = 0;
    int result = cuda.granularity(&page, &wanted, kMinimum);
    if (result != 0 || page == 0) {
        return Status::notSupported(what + ": " +
                                    cuda.text("cuMemGetAllocationGranularity", result));
    }
    if (size > UINT64_MAX - page) {
        return Status::invalidParam(what + ": larger than any GPU");
    }
    const uint64_t whole = (size + page - 1) / page * page;
    MemHandle handle = 0;
    result = cuda.memCreate(&handle, whole, &wanted, 0);
    if (result != 0) {
        wanted.rdma = 0;  // where no network card can reach it
        result = cuda.memCreate(&handle, whole, &wanted, 0);
    }
    if (result != 0) {
        return Status::backend(what + ": " + cuda.text("cuMemCreate", result));
    }
    auto memory = std::make_unique<Mapped>(cuda, device);
    if (Status status = memory->map(handle, whole); !status.ok()) {
        return Status(status.code(), what + ": " + status.message());
    }
    return std::unique_ptr<DeviceMemory>(std::move(memory));
}

Result<DeviceExport> CudaDevices::exportMemory(uint64_t address, uint64_t size) {
    Result<DeviceRange> range = find(address);
    if (!range.ok()) {
        return range.status();
    }
    const DeviceRange& here = range.value();
    if (here.kind != DeviceMemoryKind::DEVICE) {
        return Status::notSupported(here.kind == DeviceMemoryKind::MANAGED
                                        ? "managed memory cannot be shared between processes"
                                        : "it is no memory of a GPU");
    }
    if (address < here.base || size > here.size || address - here.base > here.size - size) {
        return Status::notSupported("it lies in several pieces of GPU memory");
    }
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    const Driver& cuda = *found.value();
    const DeviceScope scope(*this, here.device);
    NIXL_RETURN_IF_ERROR(scope.status());
    DeviceExport made;
    made.base = here.base;
    made.size = here.size;
    int ordinal = 0;
    if (cuda.deviceGet(&ordinal, here.device) != 0 ||
        cuda.deviceUuid(made.gpu.data(), ordinal) != 0) {
        return Status::notSupported("its GPU has no identity");
    }
    IpcHandle handle{};
    const int by_handle = cuda.ipcGet(&handle, here.base);
    if (by_handle == 0) {
        std::memcpy(made.handle.data(), handle.bytes, sizeof handle.bytes);
        return made;
    }
    MemHandle allocation = 0;
    if (cuda.retainHandle(&allocation, reinterpret_cast<void*>(here.base)) != 0) {
        return Status::notSupported(cuda.text("cuIpcGetMemHandle", by_handle));
    }
    const int by_file = cuda.exportFd(&made.fd, allocation, kFd, 0);
    cuda.memRelease(allocation);
    if (by_file != 0) {
        return Status::notSupported("its allocation was not made for sharing: " +
                                    cuda.text("cuMemExportToShareableHandle", by_file));
    }
    return made;
}

Result<std::shared_ptr<DeviceMemory>> CudaDevices::importMemory(const DeviceExport& from) {
    struct Closer {
        int fd;
        ~Closer() {
            if (fd >= 0) {
                close(fd);
            }
        }
    } const closer{from.fd};
    Result<int> device = ordinalOf(*this, from.gpu);
    if (!device.ok()) {
        return device.status();
    }
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    Driver& cuda = *found.value();
    const DeviceScope scope(*this, device.value());
    NIXL_RETURN_IF_ERROR(scope.status());
    if (from.fd >= 0) {
        MemHandle handle = 0;
        auto* const file = reinterpret_cast<void*>(static_cast<intptr_t>(from.fd));
        if (const int result = cuda.importFd(&handle, file, kFd); result != 0) {
            return Status::notSupported(cuda.text("cuMemImportFromShareableHandle", result));
        }
        auto memory = std::make_shared<Mapped>(cuda, device.value());
        NIXL_RETURN_IF_ERROR(memory->map(handle, from.size));
        return std::shared_ptr<DeviceMemory>(std::move(memory));
    }
    // Drivers open an allocation only once in a process.
    const MutexLock lock(cuda.importMutex);
    const auto known = cuda.imports.find(from.handle);
    if (known != cuda.imports.end()) {
        if (std::shared_ptr<DeviceMemory> memory = known->second.lock(); memory != nullptr) {
            return memory;
        }
    }
    IpcHandle handle{};
    std::memcpy(handle.bytes, from.handle.data(), sizeof handle.bytes);
    Address address = 0;
    if (const int result = cuda.ipcOpen(&address, handle, kLazyPeers); result != 0) {
        return Status::notSupported(cuda.text("cuIpcOpenMemHandle", result));
    }
    auto memory = std::make_shared<Opened>(cuda, device.value(), address, from.size);
    std::erase_if(cuda.imports, [](const auto& one) { return one.second.expired(); });
    cuda.imports[from.handle] = memory;
    return std::shared_ptr<DeviceMemory>(std::move(memory));
}

}  // namespace nixl::device
