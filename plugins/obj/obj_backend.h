// The OBJ backend: objects of a bucket of any store that speaks S3. Owned by the core.
//
// Threads: as nixl/backend.h; it has its own threads and needs no progress().
#pragma once

#include <memory>

#include <unistd.h>

#include "nixl/plugin.h"

#include "layout.h"
#include "s3.h"
#include "work.h"

namespace nixl::obj {

class ObjTransfer final : public BackendTransfer {
  public:
    ObjTransfer(Layout layout, OpType op, Store& store)
        : layout_(std::move(layout)), op_(op), store_(store) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override;
    void cancel() override;
    TransferDescription describe() const override;
    std::optional<uint64_t> bytesDone() const override;

  private:
    std::shared_ptr<Work> current() const;

    const Layout layout_;
    const OpType op_;
    Store& store_;
    mutable std::mutex mutex_;  // guards what follows
    std::shared_ptr<Work> work_;
};

class ObjBackend final : public Backend, public QuerySupport {
  public:
    static Result<std::unique_ptr<Backend>> create(const Parameters& parameters,
                                                   PluginServices& services);
    ~ObjBackend() override;

    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override;
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override;
    QuerySupport* query() override { return this; }
    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override;
    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override;
    Status remove(std::string_view name) override;
    std::vector<Status> removeMany(std::span<const std::string> names) override;

  private:
    explicit ObjBackend(PluginServices& services) : services_(services) {}
    Status start(const Parameters& parameters);

    PluginServices& services_;
    BackendInfo info_{"OBJ", {MemType::DRAM, MemType::OBJECT}, true};
    std::unique_ptr<Store> store_;
    const pid_t process_ = getpid();
};

extern const PluginTable kPluginTable;  // what the plugin exports

}  // namespace nixl::obj
