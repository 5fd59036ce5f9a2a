// See ucx_lane.h.
#include "ucx_lane.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "lane_ending.h"
#include "ucx_machine.h"
#include "ucx_workers.h"

namespace nixl::ucx {
namespace {

// One registration at UCX: with every engine, so that each can move a part of a transfer.
class UcxMemory final : public BackendMemory {
  public:
    explicit UcxMemory(std::shared_ptr<UcxWorkers> workers) : workers_(std::move(workers)) {}
    ~UcxMemory() override {
        for (size_t engine = 0; engine < handles_.size(); ++engine) {
            workers_->context(engine).unmap(handles_[engine]);
        }
    }
    // With the next engine.
    Status map(const MemoryRegion& region) {
        Result<UcxContext::Mapped> mapped = workers_->context(handles_.size()).map(region);
        if (!mapped.ok()) {
            return mapped.status();
        }
        handles_.push_back(mapped.value().handle);
        keys_.push_back(std::move(mapped).value().key);
        return {};
    }
    const std::vector<std::string>& keys() const { return keys_; }

  private:
    const std::shared_ptr<UcxWorkers> workers_;
    std::vector<ucp_mem_h> handles_;
    std::vector<std::string> keys_;
};

// The remote keys of the peer's engines, packed; unpacked by the worker for each connection.
class UcxRemoteMemory final : public BackendMemory {
  public:
    explicit UcxRemoteMemory(std::vector<std::string> keys) : keys_(std::move(keys)) {}
    const std::vector<std::string>& keys() const { return keys_; }

  private:
    const std::vector<std::string> keys_;
};

// The packed key of a plan's remote region for an engine: a peer's, or of this agent itself.
const std::string* keyOf(const PlanRegion& region, bool self, size_t engine) {
    const std::vector<std::string>* keys = nullptr;
    if (self) {
        const auto* const own = dynamic_cast<const UcxMemory*>(region.memory);
        keys = own == nullptr ? nullptr : &own->keys();
    } else {
        const auto* const remote = dynamic_cast<const UcxRemoteMemory*>(region.memory);
        keys = remote == nullptr ? nullptr : &remote->keys();
    }
    return keys == nullptr || keys->empty() ? nullptr : &(*keys)[engine % keys->size()];
}

class UcxTransfer final : public BackendTransfer {
  public:
    UcxTransfer(const TransferPlan& plan,
                std::shared_ptr<UcxWorkers> workers,
                PluginServices& services)
        : plan_(plan), workers_(std::move(workers)), services_(services) {
        work_.read = plan.op == OpType::READ;
        work_.peer = peerKey(plan.peer);
        const auto dealt = dealEngines(plan, workers_->engines());
        for (size_t engine = 0; engine < dealt.size(); ++engine) {
            addParts(engine, dealt[engine]);
            work_.keys.emplace_back();
            for (const PlanRegion& region : plan.remoteRegions) {
                work_.keys.back().push_back(keyOf(region, plan.peer.self, engine));
            }
        }
        if (work_.parts.empty()) {
            work_.parts.emplace_back();  // of no bytes
        }
    }

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        // Only the session tells that the peer is silent; UCX would wait for ever.
        services_.connectPeer(plan_.peer, [workers = workers_, key = work_.peer](const Status& up) {
            if (!up.ok()) {
                workers->losePeer(key, up);
            }
        });
        workers_->run(work_, completion,
                      [this, completion, message = std::string(notification),
                       has_notification](Status status) {
                          moved(completion, std::move(status),
                                has_notification ? &message : nullptr);
                      });
        return {};
    }
    void cancel() override { workers_->wake(); }

    TransferDescription describe() const override {
        const UcxLibrary& library = workers_->context(0).library();
        std::string reason = "one-sided operations of UCX " + library.version;
        if (work_.parts.size() > 1) {
            reason += " by " + std::to_string(work_.parts.size()) + " workers";
        }
        if (workers_->engines() > 1) {
            reason += ", engines";
            for (size_t i = 0; i < work_.parts.size(); ++i) {
                const size_t engine = work_.parts[i].engine;
                if (i == 0 || engine != work_.parts[i - 1].engine) {
                    reason += " " + std::to_string(engine);
                }
            }
            reason += " of " + std::to_string(workers_->engines());
        }
        return {"ucx", std::move(reason), library.path};
    }

  private:
    void addParts(size_t engine, std::span<const PlanRun> runs) {
        uint64_t bytes = 0;
        for (const PlanRun& run : runs) {
            bytes += run.size * run.count;
        }
        if (runs.empty()) {
            return;
        }
        for (std::vector<PlanRun>& part :
             dealRuns(runs, bytes, workers_->workersOfEngine(), kUcxPiece, kLeastUcxPart)) {
            work_.parts.push_back({engine, std::move(part)});
        }
    }
    void moved(const CompletionPtr& completion, Status status, const std::string* notification) {
        std::vector<SegmentFailure> failures = allOf(plan_, status);
        endPost(services_, plan_.peer, completion, std::move(status), std::move(failures),
                notification);
    }

    const TransferPlan& plan_;
    const std::shared_ptr<UcxWorkers> workers_;
    PluginServices& services_;
    UcxWork work_;
};

class UcxLane final : public Lane, public RemoteSupport {
  public:
    UcxLane(PluginServices& services, UcxOptions options)
        : services_(services), options_(std::move(options)) {}

    const char* name() const override { return "ucx"; }

    Status start(bool asked) override {
        asked_ = asked;
        const bool rdma = haveRdmaDevices();
        const bool needed = asked || options_.severalEngines;
        if (!needed && !rdma) {
            if (!ucxInstalled()) {
                logOnce(services_, LogLevel::INFO,
                        "no UCX library is on this machine; the other lanes work without it. " +
                            std::string(kInstallUcx));
            }
            return {};
        }
        Status status = open();
        if (status.ok() ? rdma && !verbsLoaded(openUcx().value()->path) : rdma) {
            logOnce(services_, LogLevel::WARN,
                    "this machine has RDMA devices, but no UCX with verbs can be used: transfers "
                    "do not go by them. " +
                        std::string(kInstallVerbs) +
                        (status.ok() ? "" : " (" + status.message() + ")"));
        }
        return needed ? status : Status();
    }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        const bool gpu = region.type == MemType::VRAM;
        if (gpu) {
            if (Status status = open(); !status.ok()) {
                return unmapped(status);
            }
        }
        const std::shared_ptr<UcxWorkers> workers = this->workers();
        if (workers == nullptr) {
            return std::unique_ptr<BackendMemory>();
        }
        // The library looks for the GPU of the thread that calls. Without a driver it knows better.
        std::optional<DeviceScope> scope;
        if (gpu) {
            scope.emplace(services_.devices(), static_cast<int>(region.deviceId));
        }
        auto memory = std::make_unique<UcxMemory>(workers);
        for (size_t engine = 0; engine < workers->engines(); ++engine) {
            if (Status status = memory->map(region); !status.ok()) {
                return gpu ? unmapped(status) : status;
            }
        }
        return std::unique_ptr<BackendMemory>(std::move(memory));
    }

    RemoteSupport* remote() override { return this; }

    LaneOffer offer(const TransferPlan& plan) override {
        if (workers() == nullptr) {
            return {0, "not asked for (lanes=ucx, GPU memory or an RDMA device start it)"};
        }
        const bool reachable = std::all_of(
            plan.remoteRegions.begin(), plan.remoteRegions.end(),
            [&](const PlanRegion& region) { return keyOf(region, plan.peer.self, 0) != nullptr; });
        if (!reachable) {
            return {0, "the peer gave no UCX keys of this memory"};
        }
        return {60, "UCX reaches the peer"};
    }

    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        const std::shared_ptr<UcxWorkers> workers = this->workers();
        if (plan.peer.self) {
            NIXL_RETURN_IF_ERROR(workers->addPeer(peerKey(plan.peer), workers->addresses()));
        }
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<UcxTransfer>(plan, workers, services_));
    }

    // RemoteSupport
    Result<std::string> connectionInfo() override {
        const std::shared_ptr<UcxWorkers> workers = this->workers();
        return workers == nullptr ? std::string() : workers->addresses();
    }
    Status addPeer(const PlanPeer& peer, std::string_view connection_info) override {
        const std::shared_ptr<UcxWorkers> workers = this->workers();
        return workers == nullptr || connection_info.empty()
                   ? Status()
                   : workers->addPeer(peerKey(peer), connection_info);
    }
    void removePeer(const PlanPeer& peer) override {
        if (const std::shared_ptr<UcxWorkers> workers = this->workers(); workers != nullptr) {
            workers->removePeer(peerKey(peer));
        }
    }
    void peerLost(const PlanPeer& peer, const Status& why) override {
        if (const std::shared_ptr<UcxWorkers> workers = this->workers(); workers != nullptr) {
            workers->losePeer(peerKey(peer), why);
        }
    }
    Status connect(const PlanPeer& /*peer*/) override { return {}; }
    Result<std::string> exportMemory(const BackendMemory& memory) override {
        const auto* const mapped = dynamic_cast<const UcxMemory*>(&memory);
        if (mapped == nullptr) {
            return std::string();
        }
        return options_.severalEngines ? packList(mapped->keys()) : mapped->keys().front();
    }
    Result<std::unique_ptr<BackendMemory>> importMemory(const PlanPeer& /*peer*/,
                                                        const MemoryRegion& /*region*/,
                                                        std::string_view blob) override {
        std::vector<std::string> keys;
        if (options_.severalEngines) {
            keys = unpackList(blob);
        } else if (!blob.empty()) {
            keys.emplace_back(blob);
        }
        return std::unique_ptr<BackendMemory>(std::make_unique<UcxRemoteMemory>(std::move(keys)));
    }

  private:
    // The other lanes move GPU memory too.
    Result<std::unique_ptr<BackendMemory>> unmapped(const Status& why) {
        if (asked_) {
            return why;
        }
        logOnce(services_, LogLevel::INFO, "GPU memory goes by the other lanes: " + why.message());
        return std::unique_ptr<BackendMemory>();
    }

    Status open() {
        const std::lock_guard lock(mutex_);
        if (workers_ != nullptr) {
            return {};
        }
        Result<const UcxLibrary*> library = openUcx();
        if (!library.ok()) {
            return library.status();
        }
        Result<std::shared_ptr<UcxWorkers>> made = UcxWorkers::create(*library.value(), options_);
        if (!made.ok()) {
            return made.status();
        }
        workers_ = std::move(made).value();
        services_.log(LogLevel::INFO,
                      "UCX " + library.value()->version + " from " + library.value()->path);
        return {};
    }
    std::shared_ptr<UcxWorkers> workers() {
        const std::lock_guard lock(mutex_);
        return workers_;
    }

    PluginServices& services_;
    const UcxOptions options_;
    bool asked_ = false;
    std::mutex mutex_;
    std::shared_ptr<UcxWorkers> workers_;  // guarded by mutex_
};

}  // namespace

std::unique_ptr<Lane> makeUcxLane(PluginServices& services, UcxOptions options) {
    return std::make_unique<UcxLane>(services, std::move(options));
}

}  // namespace nixl::ucx
