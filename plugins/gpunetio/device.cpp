// See device.h.
#include "device.h"

#include <cerrno>
#include <cstring>

#include <arpa/inet.h>
#include <unistd.h>

namespace nixl::gpunetio {
namespace {

constexpr uint8_t kPort = 1;
constexpr int kAccess = 1 | 2 | 4;  // local write, remote write, remote read
constexpr uint64_t kGpuPage = 4096;

// Of struct ibv_port_attr and struct ibv_mr.
constexpr size_t kLidAt = 34;
constexpr size_t kLinkLayerAt = 46;
constexpr uint8_t kInfiniband = 1;
constexpr size_t kLocalKeyAt = 36;
constexpr size_t kRemoteKeyAt = 40;

template <typename T>
T fieldAt(const void* object, size_t offset) {
    T value{};
    std::memcpy(static_cast<void*>(&value), static_cast<const char*>(object) + offset,
                sizeof(value));
    return value;
}

std::string hex(uint64_t value) {
    char text[32];
    std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

}  // namespace

std::vector<std::string> adapters(const Doca& doca) {
    std::vector<std::string> names;
    int count = 0;
    void** const list = doca.ibvDevices(&count);
    for (int i = 0; list != nullptr && i < count; ++i) {
        names.emplace_back(doca.ibvName(list[i]));
    }
    if (list != nullptr) {
        doca.ibvFreeDevices(list);
    }
    return names;
}

Result<std::shared_ptr<Device>> Device::create(const Doca& doca,
                                               Cuda& cuda,
                                               Devices& devices,
                                               DeviceOptions options) {
    std::shared_ptr<Device> made(new Device(doca, cuda, devices, std::move(options)));
    NIXL_RETURN_IF_ERROR(made->open());
    return made;
}

std::string Device::name() const {
    return "GPU " + std::to_string(options_.gpu) + " with adapter " + options_.adapter;
}

Status Device::open() {
    const DeviceScope scope(devices_, options_.gpu);
    NIXL_RETURN_IF_ERROR(scope.status());
    NIXL_RETURN_IF_ERROR(doca_.check(
        doca_.createGpu(options_.pciAddress.c_str(), &gpu_),
        "opening GPU " + std::to_string(options_.gpu) + " (" + options_.pciAddress + ")"));
    NIXL_RETURN_IF_ERROR(openAdapter());
    Result<void*> kernel = cuda_.loadKernel();
    if (!kernel.ok()) {
        return kernel.status();
    }
    kernel_ = kernel.value();
    for (unsigned i = 0; i < options_.streams; ++i) {
        Result<void*> stream = cuda_.createStream();
        if (!stream.ok()) {
            return stream.status();
        }
        streams_.push_back(stream.value());
    }
    return {};
}

Status Device::openAdapter() {
    int count = 0;
    void** const list = doca_.ibvDevices(&count);
    int error = -1;
    for (int i = 0; list != nullptr && i < count; ++i) {
        if (options_.adapter == doca_.ibvName(list[i])) {
            error = doca_.openContext(list[i], 0, &context_);
            break;
        }
    }
    if (list != nullptr) {
        doca_.ibvFreeDevices(list);
    }
    NIXL_RETURN_IF_ERROR(doca_.check(error, "opening adapter " + options_.adapter));
    NIXL_RETURN_IF_ERROR(
        doca_.check(doca_.createPd(context_, &pd_), name() + ": a protection domain"));
    ibvPd_ = doca_.ibvPd(pd_);
    NIXL_RETURN_IF_ERROR(
        doca_.check(doca_.openDevice(ibvPd_, &device_), name() + ": opening the device"));
    void* const verbs = fieldAt<void*>(ibvPd_, 0);
    if (doca_.ibvGid(verbs, kPort, options_.gidIndex, gid_.data()) != 0) {
        return Status::invalidParam("GPUNETIO: adapter " + options_.adapter +
                                    " has no GID of gid_index " +
                                    std::to_string(options_.gidIndex));
    }
    alignas(8) uint8_t port[256] = {};
    if (doca_.ibvPort(verbs, kPort, port) != 0) {
        return Status::backend("GPUNETIO: adapter " + options_.adapter + ": its port 1", errno);
    }
    lid_ = fieldAt<uint16_t>(port, kLidAt);
    ethernet_ = fieldAt<uint8_t>(port, kLinkLayerAt) != kInfiniband;
    return {};
}

Device::~Device() {
    const DeviceScope scope(devices_, options_.gpu);
    for (void* const stream : streams_) {
        cuda_.destroyStream(stream);
    }
    if (device_ != nullptr) {
        doca_.closeDevice(device_);
    }
    if (pd_ != nullptr) {
        doca_.destroyPd(pd_);
    }
    if (context_ != nullptr) {
        doca_.closeContext(context_);
    }
    if (gpu_ != nullptr) {
        doca_.destroyGpu(gpu_);
    }
}

Result<Device::Registration> Device::registerMemory(uint64_t address, uint64_t size) {
    const DeviceScope scope(devices_, options_.gpu);
    NIXL_RETURN_IF_ERROR(scope.status());
    void* const at = reinterpret_cast<void*>(address);
    void* handle = nullptr;
    int file = -1;
    // Whole pages can be named by a file of the driver; others need its module nvidia-peermem.
    if (address % kGpuPage == 0 && size % kGpuPage == 0 &&
        doca_.dmabuf(gpu_, at, size, &file) == 0) {
        handle = doca_.ibvRegisterDmabuf(ibvPd_, 0, size, address, file, kAccess);
    }
    if (handle == nullptr) {
        handle = doca_.ibvRegister(ibvPd_, at, size, kAccess);
    }
    const int error = errno;
    if (file >= 0) {
        close(file);
    }
    if (handle == nullptr) {
        return Status::backend("GPUNETIO: adapter " + options_.adapter + " cannot register " +
                                   std::to_string(size) + " bytes at " + hex(address) + " of GPU " +
                                   std::to_string(options_.gpu) +
                                   " (does the driver have nvidia-peermem or DMA-BUF?)",
                               error);
    }
    return Registration{handle, htonl(fieldAt<uint32_t>(handle, kLocalKeyAt)),
                        htonl(fieldAt<uint32_t>(handle, kRemoteKeyAt))};
}

void Device::deregister(void* handle) {
    doca_.ibvDeregister(handle);
}

Status Device::launch(Job* job) {
    const DeviceScope scope(devices_, options_.gpu);
    NIXL_RETURN_IF_ERROR(scope.status());
    void* const stream = streams_[nextStream_.fetch_add(1) % streams_.size()];
    return cuda_.launch(kernel_, stream, job);
}

}  // namespace nixl::gpunetio
