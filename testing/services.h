// What a backend gets from the core, for tests without an agent: a real reactor and pool, and logs,
// counters and notifications kept where a test can look. Also stands for the agent as the target
// of the project's own lanes. Owned by the test; outlives the backends. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nixl/backend.h"
#include "nixl/lane.h"
#include "nixl/services.h"

#include "base/mutex.h"
#include "base/reactor.h"
#include "base/work_pool.h"
#include "device/devices.h"
#include "memory/region.h"
#include "session/target_access.h"

namespace nixl::testkit {

class TestServices final : public PluginServices {
  public:
    explicit TestServices(std::string agent_name = "test-agent");
    ~TestServices() override;
    TestServices(const TestServices&) = delete;
    TestServices& operator=(const TestServices&) = delete;

    void log(LogLevel level, std::string_view message) override;
    bool logs(LogLevel /*level*/) const override { return true; }
    Reactor& reactor() override { return *reactor_; }
    WorkPool& copyPool() override { return pool_; }
    Devices& devices() override { return device::devices(); }
    void count(std::string_view name, uint64_t amount) override;
    std::string_view agentName() const override { return name_; }
    bool progressThreadWanted() const override { return false; }
    void deliverNotification(std::string_view from, std::string message) override;
    // To the services of that incarnation, else to these.
    void notifyPeer(const PlanPeer& peer,
                    std::string message,
                    std::function<void(Status)> done) override;
    void connectPeer(const PlanPeer& /*peer*/, std::function<void(Status)> done) override {
        done({});
    }
    // As notifyPeer.
    void sendLaneMessage(const PlanPeer& peer,
                         std::string_view lane,
                         std::string_view message,
                         const std::function<void(Status)>& done) override;
    void listenToLane(std::string_view lane, const LaneListener& call) override;
    Result<std::unique_ptr<Backend>> createLaneBackend(LaneBackendSpec spec) override;

    const std::array<uint8_t, 16>& incarnation() const { return incarnation_; }
    // Lets peers of this process reach a region through the project's lanes; gives its id.
    uint64_t addRegion(const MemoryRegion& region);

    std::vector<std::string> lines(LogLevel level) const;
    std::vector<std::pair<std::string, std::string>> takeNotifications();
    uint64_t counter(std::string_view name) const;

  private:
    class Target;

    void deliverToLane(const peer::Identity& from, const std::string& message);

    const std::string name_;
    std::array<uint8_t, 16> incarnation_{};
    std::unique_ptr<base::EpollReactor> reactor_;
    std::shared_ptr<Target> target_;
    mutable Mutex mutex_;
    std::vector<std::pair<LogLevel, std::string>> lines_ NIXL_GUARDED_BY(mutex_);
    std::map<std::string, uint64_t, std::less<>> counters_ NIXL_GUARDED_BY(mutex_);
    std::vector<std::pair<std::string, std::string>> notifications_ NIXL_GUARDED_BY(mutex_);
    std::map<std::string, LaneListener, std::less<>> listeners_ NIXL_GUARDED_BY(mutex_);
    base::ThreadPool pool_;  // last: its tasks use the rest
};

}  // namespace nixl::testkit
