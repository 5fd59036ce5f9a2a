// RELAY, an example of a lane: between agents of one process, by memory copies on the core's pool.
// A registration's remote key is the process and a number; a deregistration waits for copies.
// Sessions, notifications and the choice are the core's. Threads: as nixl/backend.h, and a lock.
#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include <unistd.h>

#include <nixl/lane.h>
#include <nixl/plugin.h>

namespace {
using namespace nixl;  // NOLINT(google-build-using-namespace): an example of its interface

// The registrations of this process. Copies hold the lock shared, registering and deregistering
// alone. Never destroyed: agents may end at exit.
struct Registry {
    std::shared_mutex lock;
    std::set<uint64_t> live;
    uint64_t next = 1;
};
Registry& registry() {
    static auto* const one = new Registry;
    return *one;
}

// A remote key. What stands in a peer's blob is opaque to the core.
struct Key {
    pid_t process = 0;
    uint64_t number = 0;
};

// What the lane keeps of a registration: of this agent's own, or of a peer's by its key.
struct RelayMemory final : BackendMemory {
    RelayMemory() : mine(true) {
        const std::lock_guard alone(registry().lock);
        key = {getpid(), *registry().live.insert(registry().next++).first};
    }
    explicit RelayMemory(std::string_view blob) {
        blob.copy(reinterpret_cast<char*>(&key), sizeof(key));
    }
    ~RelayMemory() override {
        if (mine) {
            const std::lock_guard waits_for_copies(registry().lock);
            registry().live.erase(key.number);
        }
    }
    Key key;
    const bool mine = false;
};

Key keyOf(const PlanRegion& region) {
    const auto* const memory = dynamic_cast<const RelayMemory*>(region.memory);
    return memory == nullptr ? Key() : memory->key;
}

struct RelayTransfer final : BackendTransfer {
    RelayTransfer(const TransferPlan& plan, PluginServices& services)
        : plan_(plan), services_(services) {}
    Status post(CompletionPtr completion, std::string_view message, bool notify) override {
        services_.copyPool().run([this, completion, notify, text = std::string(message)] {
            std::vector<SegmentFailure> failures;
            const auto end = [completion](Status status, std::vector<SegmentFailure> failed = {}) {
                status.ok() ? completion->succeed() : completion->fail(status, std::move(failed));
            };
            Status copied = copy(*completion, failures);
            copied.ok() && notify ? services_.notifyPeer(plan_.peer, text, end)
                                  : end(std::move(copied), std::move(failures));
        });
        return {};
    }
    void cancel() override {}  // the copy looks at the completion
    TransferDescription describe() const override { return {"relay", "one process", "memory"}; }
    Status copy(const Completion& completion, std::vector<SegmentFailure>& failures) const {
        SegmentCursor cursor(plan_.runs);
        for (Segment one; cursor.next(one) && !completion.cancelRequested();) {
            const std::shared_lock shared(registry().lock);
            if (!registry().live.contains(keyOf(plan_.remoteRegions[one.remoteRegion]).number)) {
                failures.push_back({one.planOffset, one.size, 0, EFAULT});
                continue;
            }
            const bool read = plan_.op == OpType::READ;
            std::memmove(reinterpret_cast<void*>(read ? one.local : one.remote),
                         reinterpret_cast<void*>(read ? one.remote : one.local), one.size);
        }
        return completion.cancelRequested() ? Status::canceled("RELAY: canceled")
               : failures.empty()           ? Status()
                                            : Status::notFound("RELAY: deregistered memory");
    }
    const TransferPlan& plan_;
    PluginServices& services_;
};
using MemoryResult = Result<std::unique_ptr<BackendMemory>>;

struct RelayLane final : Lane, RemoteSupport {
    explicit RelayLane(PluginServices& services) : services_(services) {}
    const char* name() const override { return "relay"; }
    LaneOffer offer(const TransferPlan& plan) override {
        for (const PlanRegion& region : plan.remoteRegions) {
            if (keyOf(region).process != getpid()) {
                return {0, "the peer is in another process"};
            }
        }
        return {90, "the peer is in this process"};
    }
    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        return std::unique_ptr<BackendTransfer>(new RelayTransfer(plan, services_));
    }
    MemoryResult registerMemory(const MemoryRegion& /*region*/) override {
        return MemoryResult(std::make_unique<RelayMemory>());
    }
    RemoteSupport* remote() override { return this; }  // how peers learn of the keys
    Result<std::string> connectionInfo() override { return std::string("relay"); }
    Status addPeer(const PlanPeer& /*peer*/, std::string_view /*info*/) override { return {}; }
    void removePeer(const PlanPeer& /*peer*/) override {}
    Status connect(const PlanPeer& /*peer*/) override { return {}; }
    Result<std::string> exportMemory(const BackendMemory& memory) override {
        const Key& key = dynamic_cast<const RelayMemory&>(memory).key;
        return std::string(reinterpret_cast<const char*>(&key), sizeof(key));
    }
    MemoryResult importMemory(const PlanPeer& /*peer*/,
                              const MemoryRegion& /*region*/,
                              std::string_view key) override {
        return MemoryResult(std::make_unique<RelayMemory>(key));
    }
    PluginServices& services_;
};

Result<std::unique_ptr<Backend>> create(const Parameters& parameters, PluginServices& services) {
    LaneBackendSpec spec;
    spec.info = {"RELAY", {MemType::DRAM}, false};
    spec.wantedLanes = parameters.text("lanes");
    spec.lanes.push_back(std::make_unique<RelayLane>(services));  // the line of registration
    return services.createLaneBackend(std::move(spec));
}

constexpr MemType kTypes[] = {MemType::DRAM};
constexpr ParameterSpec kParameters[] = {
    {"lanes", ParameterType::STRING, "", "which may be used: relay, local, host, stream"}};
constexpr PluginTable kTable = {
    kPluginAbi, PluginKind::BACKEND, "RELAY", nullptr, "1.0",  "an example of a lane", kTypes,
    1,          kParameters,         1,       &create, nullptr};

}  // namespace
NIXL_EXPORT_PLUGIN(kTable)
