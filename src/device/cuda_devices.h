// What nixl/device.h offers, by the CUDA driver. It has no state of its own: a forked child gets
// another driver from Driver::get.
#pragma once

#include "nixl/device.h"

#include "device/driver.h"

namespace nixl::device {

class CudaDevices final : public Devices {
  public:
    constexpr CudaDevices() = default;

    bool likely() override;
    Status available() override;
    Result<std::vector<DeviceInfo>> list() override;
    Result<int> driverVersion() override;
    Result<DeviceRange> find(uint64_t address) override;
    Status check(uint64_t address, uint64_t size, uint64_t device) override;
    Status enter(int device) override;
    void leave() override;
    Result<std::shared_ptr<DeviceBatch>> copy(std::span<const DeviceCopy> copies,
                                              int device) override;
    Result<std::unique_ptr<DeviceStaging>> staging(int device, uint64_t size) override;
    Status pin(int device, void* host, uint64_t size) override;
    void unpin(void* host) override;
    Result<std::unique_ptr<DeviceMemory>> allocate(int device, uint64_t size) override;
    Result<DeviceExport> exportMemory(uint64_t address, uint64_t size) override;
    Result<std::shared_ptr<DeviceMemory>> importMemory(const DeviceExport& from) override;
};

// NOT_SUPPORTED with why there is none.
Result<Driver*> driver();

// "0x7f0012340000".
std::string hex(uint64_t address);

}  // namespace nixl::device
