// One open device of the list: a file or a kernel block device, with what it takes. Shared by all
// registrations of it; closes with the last.
//
// Threads: immutable once open, but for size().
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "nixl/error.h"

#include "client_abi.h"
#include "config.h"

namespace nixl::gusli {

class Device {
  public:
    // Of kinds F and K: opens the path.
    static Result<std::shared_ptr<Device>> open(const DeviceConfig& config);
    // One that the GUSLI client has connected to.
    static Result<std::shared_ptr<Device>> ofClient(const DeviceConfig& config,
                                                    const NixlGusliDevice& connected);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    const DeviceConfig& config() const { return config_; }
    // Of the client's devices an empty file, which nobody reads or writes.
    int fd() const { return fd_; }
    bool throughClient() const { return clientDescriptor_ >= 0; }
    int32_t clientDescriptor() const { return clientDescriptor_; }
    // Offsets and lengths are multiples of it.
    uint32_t blockSize() const { return blockSize_; }
    uint32_t memoryAlign() const { return memoryAlign_; }
    bool direct() const { return direct_; }
    bool writable() const { return config_.access != Access::READ; }
    // A file grows when it is written beyond its end; a device never does.
    bool grows() const { return grows_; }
    uint64_t size() const;  // bytes
    const std::string& label() const { return label_; }

  private:
    explicit Device(DeviceConfig config);
    Status openPath();
    Status inspect();
    Status lock() const;
    Status failed(const std::string& what, int error) const;

    const DeviceConfig config_;
    std::string label_;  // `device 11 ("/dev/loop0")`
    int fd_ = -1;
    int32_t clientDescriptor_ = -1;
    uint32_t blockSize_ = 512;
    uint32_t memoryAlign_ = 512;
    uint64_t bytes_ = 0;  // of a block device or the client's
    bool direct_ = true;
    bool grows_ = false;
};

}  // namespace nixl::gusli
