// The GUSLI backend: block devices and files of a list, read and written by the queue engines of
// plugins/posix with O_DIRECT, and devices of servers through the GUSLI client. Owned by the core.
//
// Threads: as nixl/backend.h; it has its own threads and needs no progress().
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nixl/plugin.h"

#include "client_engine.h"
#include "device.h"
#include "posix/machinery.h"

namespace nixl::gusli {

class GusliBackend final : public Backend, public QuerySupport {
  public:
    static Result<std::unique_ptr<Backend>> create(const Parameters& parameters,
                                                   PluginServices& services);
    ~GusliBackend() override;

    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override;
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override;
    QuerySupport* query() override { return this; }
    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override;

    // What moves the bytes: "io_uring", where that is permitted.
    const char* engineName() const { return machinery_->queue->name(); }

  private:
    explicit GusliBackend(PluginServices& services) : services_(services) {}
    Status start(const Parameters& parameters);
    bool throughClient(const DeviceConfig& config) const {
        return config.kind == Kind::NETWORK || allThroughClient_;
    }
    Result<std::shared_ptr<Device>> open(const DeviceConfig& config);
    Result<std::shared_ptr<Device>> openThroughClient(const DeviceConfig& config);
    Result<std::unique_ptr<BackendMemory>> registerBlocks(const MemoryRegion& region);
    Status noDevice(const MemoryRegion& region) const;

    PluginServices& services_;
    BackendInfo info_{"GUSLI", {MemType::DRAM, MemType::BLOCK}, true};
    std::vector<DeviceConfig> devices_;
    std::unique_ptr<posix::Machinery> machinery_;
    posix::BuildLimits limits_;
    bool allThroughClient_ = false;
    Client::Options clientOptions_;

    std::mutex mutex_;                                   // guards what follows
    std::map<std::string, std::weak_ptr<Device>> open_;  // by id
    std::unique_ptr<ClientSide> client_;                 // made for its first device
};

extern const PluginTable kPluginTable;  // what the plugin exports

}  // namespace nixl::gusli
