// A GPU and the network adapter that serves it: DOCA's handles, the protection domain with the
// registered memory, the kernel and streams to run it on. Threads: any.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "nixl/device.h"

#include "cuda.h"
#include "doca.h"

namespace nixl::gpunetio {

struct DeviceOptions {
    int gpu = 0;
    std::string pciAddress;
    std::string adapter;  // "mlx5_0"
    uint8_t gidIndex = 0;
    unsigned streams = 1;
};

class Device {
  public:
    static Result<std::shared_ptr<Device>> create(const Doca& doca,
                                                  Cuda& cuda,
                                                  Devices& devices,
                                                  DeviceOptions options);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    const DeviceOptions& options() const { return options_; }
    const Doca& doca() const { return doca_; }
    Cuda& cuda() const { return cuda_; }
    Devices& devices() const { return devices_; }
    void* gpu() const { return gpu_; }
    void* context() const { return context_; }
    void* pd() const { return pd_; }
    void* device() const { return device_; }
    const Gid& gid() const { return gid_; }
    uint16_t lid() const { return lid_; }
    bool ethernet() const { return ethernet_; }

    // Memory that the adapter may reach. Keys are big-endian.
    struct Registration {
        void* handle = nullptr;
        uint32_t localKey = 0;
        uint32_t remoteKey = 0;
    };
    Result<Registration> registerMemory(uint64_t address, uint64_t size);
    void deregister(void* handle);

    // Starts the kernel on one of the streams.
    Status launch(Job* job);

  private:
    Device(const Doca& doca, Cuda& cuda, Devices& devices, DeviceOptions options)
        : doca_(doca), cuda_(cuda), devices_(devices), options_(std::move(options)) {}
    Status open();
    Status openAdapter();
    std::string name() const;

    const Doca& doca_;
    Cuda& cuda_;
    Devices& devices_;
    const DeviceOptions options_;
    void* gpu_ = nullptr;
    void* context_ = nullptr;
    void* pd_ = nullptr;
    void* ibvPd_ = nullptr;
    void* device_ = nullptr;
    Gid gid_{};
    uint16_t lid_ = 0;
    bool ethernet_ = true;
    void* kernel_ = nullptr;
    std::vector<void*> streams_;
    std::atomic<size_t> nextStream_{0};
};

// The adapters that the verbs library sees.
std::vector<std::string> adapters(const Doca& doca);

}  // namespace nixl::gpunetio
