// The backends GDS and GDS_MT: files of the caller or by path, from and to GPU and host memory, by
// cuFile. Owned by the core.
//
// Threads: as nixl/backend.h; they have their own threads and need no progress().
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include <unistd.h>

#include "nixl/plugin.h"

#include "engine.h"
#include "file.h"

namespace nixl::gds {

enum class Kind : uint8_t { BATCHES, THREADS };

struct GdsOptions {
    Kind kind = Kind::BATCHES;
    EngineOptions engine;
    uint64_t maxRequest = 0;
    double driverSeconds = 0;
    int64_t fdCache = 0;
};

GdsOptions commonOptions(Kind kind, const Parameters& parameters);

class GdsBackend final : public Backend, public QuerySupport {
  public:
    static Result<std::unique_ptr<Backend>> create(const GdsOptions& options,
                                                   PluginServices& services);
    ~GdsBackend() override;

    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override;
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override;
    QuerySupport* query() override { return this; }
    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override;
    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override;
    Status remove(std::string_view name) override;

  private:
    friend class GdsTransfer;
    GdsBackend(Kind kind, PluginServices& services);
    Status start(GdsOptions options);
    Result<std::unique_ptr<BackendMemory>> registerBuffer(const MemoryRegion& region);
    void leave();
    // The same with the backend's name in front.
    Status named(const Status& status) const;

    PluginServices& services_;
    BackendInfo info_;
    const CuFileDriver* driver_ = nullptr;
    std::shared_ptr<FileTable> files_;
    std::unique_ptr<Engine> engine_;
    uint64_t maxRequest_ = 0;
    std::atomic<uint64_t> posts_{0};
    std::atomic<bool> toldUnregistered_{false};
    const pid_t process_ = getpid();
};

}  // namespace nixl::gds
