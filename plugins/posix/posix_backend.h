// The POSIX backend: files of the caller or by path, read and written by one queue engine
// (O_DIRECT) and one pool of threads (page cache). Owned by the core.
//
// Threads: as nixl/backend.h; it has its own threads and needs no progress().
#pragma once

#include <memory>

#include "nixl/plugin.h"

#include "file.h"
#include "machinery.h"

namespace nixl::posix {

class PosixBackend final : public Backend, public QuerySupport {
  public:
    static Result<std::unique_ptr<Backend>> create(const Parameters& parameters,
                                                   PluginServices& services);
    ~PosixBackend() override;

    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override;
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override;
    QuerySupport* query() override { return this; }
    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override;
    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override {
        return listFiles(prefix, limit);
    }
    Status remove(std::string_view name) override { return removeFile(name); }

    // What serves O_DIRECT files.
    const char* engineName() const;

  private:
    explicit PosixBackend(PluginServices& services) : services_(services) {}
    Status start(const Parameters& parameters);
    Result<std::unique_ptr<BackendMemory>> registerVram(const MemoryRegion& region);
    std::unique_ptr<BackendMemory> registerDram(const MemoryRegion& region);

    PluginServices& services_;
    BackendInfo info_{"POSIX", {MemType::DRAM, MemType::FILE}, true};
    std::unique_ptr<Machinery> machinery_;
    BuildLimits queueLimits_;
    BuildLimits poolLimits_;
    uint64_t inlineBytes_ = 0;
    bool registerBuffers_ = false;
};

extern const PluginTable kPluginTable;  // what the plugin exports

}  // namespace nixl::posix
