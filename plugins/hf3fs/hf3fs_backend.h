// The HF3FS backend: files of a mounted 3FS through the rings of its client. Owned by the core.
//
// Threads: as nixl/backend.h; it has its own threads and needs no progress().
#pragma once

#include <memory>
#include <string>

#include <unistd.h>

#include "nixl/plugin.h"

#include "posix/file.h"
#include "posix/job.h"
#include "ring_engine.h"

namespace nixl::hf3fs {

// Everything that requests in flight may touch; outlives the backend when 3FS does not give them
// back.
struct Rings {
    Rings(const Library& client, Devices& devices, size_t files, size_t bounces, const Iov& memory)
        : library(client),
          bounceIov(memory),
          shared("HF3FS", devices, files, bounces, kBounceBytes, memory.base),
          scheduler(shared) {}
    ~Rings();
    Rings(const Rings&) = delete;
    Rings& operator=(const Rings&) = delete;

    static constexpr uint64_t kBounceBytes = 512 << 10;

    const Library& library;
    Iov bounceIov;  // base is null where there are none
    posix::Shared shared;
    posix::Scheduler scheduler;
    std::unique_ptr<RingEngine> engine;
};

enum class MemConfig : uint8_t { DRAM, ZERO_COPY, AUTO };

class Hf3fsBackend final : public Backend, public QuerySupport {
  public:
    static Result<std::unique_ptr<Backend>> create(const Parameters& parameters,
                                                   PluginServices& services);
    ~Hf3fsBackend() override;

    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override;
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override;
    QuerySupport* query() override { return this; }
    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override;
    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override;
    Status remove(std::string_view name) override;

  private:
    Hf3fsBackend(PluginServices& services, const Library& library)
        : services_(services), library_(library) {}
    Status start(const Parameters& parameters);
    Status findMount(const std::string& wanted);
    Status startRings(unsigned depth);
    Status notOf3fs(const std::string& what) const;
    Result<std::unique_ptr<BackendMemory>> registerDram(const MemoryRegion& region);
    Result<std::unique_ptr<BackendMemory>> registerFile(const MemoryRegion& region);

    PluginServices& services_;
    const Library& library_;
    BackendInfo info_{"HF3FS", {MemType::DRAM, MemType::FILE}, true};
    std::string mount_;
    dev_t mountDevice_ = 0;
    MemConfig config_ = MemConfig::DRAM;
    std::unique_ptr<Rings> rings_;
    std::unique_ptr<SharedMemory> sharedMemory_;
    std::atomic<bool> toldCopies_{false};
    const pid_t process_ = getpid();
};

extern const PluginTable kPluginTable;  // what the plugin exports

}  // namespace nixl::hf3fs
