// What one backend of an agent is given of the core. Owned by the LoadedBackend; thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "nixl/lane.h"
#include "nixl/services.h"

#include "agent/shared.h"
#include "base/mutex.h"
#include "device/devices.h"

namespace nixl::agent {

class BackendServices final : public PluginServices {
  public:
    // Gives the project's lanes for a network backend.
    using LaneFactory = std::function<Result<std::vector<std::unique_ptr<Lane>>>(
        PluginServices& services, const LaneBackendSpec& spec)>;

    struct Core {
        std::shared_ptr<AgentShared> shared;
        Reactor* reactor = nullptr;
        WorkPool* pool = nullptr;
        bool progressThread = true;
        std::string wantedLanes;  // of the agent's configuration
        LaneFactory lanes;
        std::function<void(const peer::Identity&, std::string, std::function<void(Status)>)> notify;
        std::function<void(const peer::Identity&, std::function<void(Status)>)> connect;
        std::function<std::shared_ptr<Pollers>()> pollers;
    };

    BackendServices(std::string backend, Core core)
        : backend_(std::move(backend)), core_(std::move(core)) {}

    void log(LogLevel level, std::string_view message) override;
    bool logs(LogLevel level) const override;
    Reactor& reactor() override { return *core_.reactor; }
    WorkPool& copyPool() override { return *core_.pool; }
    Devices& devices() override { return device::devices(); }
    void count(std::string_view name, uint64_t amount) override;
    std::string_view agentName() const override { return core_.shared->self().name; }
    bool progressThreadWanted() const override { return core_.progressThread; }
    void deliverNotification(std::string_view from, std::string message) override;
    void notifyPeer(const PlanPeer& peer,
                    std::string message,
                    std::function<void(Status)> done) override;
    void connectPeer(const PlanPeer& peer, std::function<void(Status)> done) override;
    Result<std::unique_ptr<Backend>> createLaneBackend(LaneBackendSpec spec) override;
    void sendLaneMessage(const PlanPeer& peer,
                         std::string_view lane,
                         std::string_view message,
                         const std::function<void(Status)>& done) override;
    void listenToLane(std::string_view lane, const LaneListener& call) override;
    std::shared_ptr<Pollers> pollers() override {
        return core_.pollers ? core_.pollers() : nullptr;
    }

    std::map<std::string, uint64_t> counters() const;

  private:
    const std::string backend_;
    const Core core_;
    mutable Mutex mutex_;
    std::map<std::string, uint64_t, std::less<>> counters_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::agent
