// Asking the driver: GPUs, addresses, contexts; see nixl/device.h.
#include "device/devices.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <unistd.h>

#include "device/cuda_devices.h"

namespace nixl {

Devices& devices() {
    return device::devices();
}

}  // namespace nixl

namespace nixl::device {

namespace {

// CUpointer_attribute.
constexpr int kMemoryType = 2;
constexpr int kBufferId = 7;
constexpr int kIsManaged = 8;
constexpr int kOrdinal = 9;
constexpr int kRangeStart = 11;
constexpr int kRangeSize = 12;
constexpr int kMappingSize = 18;
constexpr int kMappingBase = 19;
constexpr uint64_t kTypeHost = 1;
constexpr uint64_t kTypeDevice = 2;

// How the thread respected captured graphs before each context it is in.
constexpr size_t kDeepest = 8;
struct Modes {
    size_t depth = 0;
    int before[kDeepest] = {};
};
constinit thread_local Modes modes;

std::string place(uint64_t address, uint64_t size) {
    return std::to_string(size) + " bytes at " + hex(address);
}

}  // namespace

Devices& devices() {
    static constinit CudaDevices one;
    return one;
}

Result<Driver*> driver() {
    std::string reason;
    Driver* const found = Driver::get(reason);
    if (found == nullptr) {
        return Status::notSupported(reason);
    }
    return found;
}

std::string hex(uint64_t address) {
    char text[20];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
    return text;
}

bool CudaDevices::likely() {
    const char* const name = getenv("NIXL_CUDA_LIBRARY");
    return (name != nullptr && *name != '\0') || access("/dev/nvidiactl", F_OK) == 0;
}

Status CudaDevices::available() {
    return driver().status();
}

Result<std::vector<DeviceInfo>> CudaDevices::list() {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    const Driver& cuda = *found.value();
    int count = 0;
    if (const int result = cuda.deviceCount(&count); result != 0) {
        return cuda.failure("cuDeviceGetCount", result);
    }
    std::vector<DeviceInfo> all;
    for (int id = 0; id < std::min(count, kMaxDevices); ++id) {
        DeviceInfo info;
        info.id = id;
        int handle = 0;
        char name[256] = "";
        char pci[64] = "";
        size_t bytes = 0;
        if (const int result = cuda.deviceGet(&handle, id); result != 0) {
            return cuda.failure("cuDeviceGet", result);
        }
        if (cuda.deviceName(name, sizeof name, handle) == 0) {
            info.name = name;
        }
        if (cuda.devicePci(pci, sizeof pci, handle) == 0) {
            info.pciAddress = pci;
        }
        if (cuda.deviceBytes(&bytes, handle) == 0) {
            info.bytes = bytes;
        }
        cuda.deviceUuid(info.identity.data(), handle);
        all.push_back(std::move(info));
    }
    return all;
}

Result<int> CudaDevices::driverVersion() {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    int version = 0;
    if (const int result = found.value()->driverVersion(&version); result != 0) {
        return found.value()->failure("cuDriverGetVersion", result);
    }
    return version;
}

Result<DeviceRange> CudaDevices::find(uint64_t address) {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    const Driver& cuda = *found.value();
    // Eight bytes for each, whatever the driver writes there.
    uint64_t type = 0;
    uint64_t managed = 0;
    uint64_t ordinal = 0;
    DeviceRange range;
    int names[] = {kMemoryType, kIsManaged, kOrdinal, kRangeStart, kRangeSize, kBufferId};
    void* values[] = {&type, &managed, &ordinal, &range.base, &range.size, &range.buffer};
    if (const int result = cuda.attributes(std::size(names), names, values, address); result != 0) {
        return cuda.failure("cuPointerGetAttributes", result);
    }
    range.pinned = type == kTypeHost;
    if ((managed & 0xFF) != 0) {
        range.kind = DeviceMemoryKind::MANAGED;
    } else if (type == kTypeDevice) {
        range.kind = DeviceMemoryKind::DEVICE;
    } else {
        return range;
    }
    range.device = static_cast<int>(static_cast<uint32_t>(ordinal));
    // A reserved range may be mapped in pieces only, and a mapped page may hold more than one
    // allocation. Older drivers tell nothing of pages.
    uint64_t base = 0;
    uint64_t size = 0;
    int piece[] = {kMappingBase, kMappingSize};
    void* of_piece[] = {&base, &size};
    if (cuda.attributes(std::size(piece), piece, of_piece, address) == 0 && size != 0 &&
        base <= address && address - base < size) {
        const uint64_t end = std::min(base + size, range.base + range.size);
        range.base = std::max(base, range.base);
        range.size = end - range.base;
    }
    return range;
}

Status CudaDevices::check(uint64_t address, uint64_t size, uint64_t device) {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    const std::string what =
        "GPU memory of device " + std::to_string(device) + ", " + place(address, size) + ": ";
    int count = 0;
    if (found.value()->deviceCount(&count) == 0 && device >= static_cast<uint64_t>(count)) {
        return Status::invalidParam(what + "there is no GPU " + std::to_string(device) +
                                    "; this process sees " + std::to_string(count));
    }
    for (uint64_t at = address; at - address < size;) {
        Result<DeviceRange> range = find(at);
        if (!range.ok()) {
            return {range.status().code(), what + range.status().message()};
        }
        const DeviceRange& here = range.value();
        if (here.kind == DeviceMemoryKind::HOST) {
            const std::string why = here.pinned
                                        ? "is host memory (page-locked): register it as DRAM"
                                        : "is no memory of a GPU: host memory, or freed";
            return Status::invalidParam(
                what + (at == address ? "the address " : "it ends at " + hex(at) + ", which ") +
                why);
        }
        if (here.kind == DeviceMemoryKind::DEVICE && here.device != static_cast<int>(device)) {
            return Status::invalidParam(what + "it belongs to device " +
                                        std::to_string(here.device));
        }
        const uint64_t end = here.base + here.size;
        if (end <= at) {
            return {};  // the driver cannot tell how far it goes
        }
        at = end;
    }
    return {};
}

Status CudaDevices::enter(int device) {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    Result<Context> context = found.value()->context(device);
    if (!context.ok()) {
        return context.status();
    }
    if (const int result = found.value()->push(context.value()); result != 0) {
        return found.value()->failure("cuCtxPushCurrent", result);
    }
    const int before = found.value()->captureMode(kRelaxed);
    if (modes.depth < kDeepest) {
        modes.before[modes.depth] = before;
    }
    ++modes.depth;
    return {};
}

void CudaDevices::leave() {
    std::string reason;
    Driver* const cuda = Driver::get(reason);
    Context gone = nullptr;
    if (cuda == nullptr) {
        return;
    }
    cuda->pop(&gone);
    if (--modes.depth < kDeepest) {
        cuda->captureMode(modes.before[modes.depth]);
    }
}

}  // namespace nixl::device
