// See services.h.
#include "testing/services.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "agent/shared.h"
#include "lanes/lane_backend.h"
#include "lanes/local/lane.h"

namespace nixl::testkit {

class TestServices::Target final : public peer::TargetAccess {
  public:
    explicit Target(TestServices& services) : name_(services.name_), services_(&services) {}

    const std::string& agentName() const override { return name_; }
    Result<peer::RegionPin> pin(uint64_t region_id, uint32_t generation) override {
        const MutexLock lock(mutex_);
        const auto found = regions_.find(region_id);
        if (found == regions_.end() || found->second->generation != generation ||
            !found->second->pin()) {
            return Status::notFound("region " + std::to_string(region_id) + " is not registered");
        }
        return peer::RegionPin(found->second);
    }
    Status deliverLocal(const peer::Identity& from, std::string message) override {
        const MutexLock lock(mutex_);
        if (services_ == nullptr) {
            return Status::disconnected("the test's agent has ended");
        }
        if (std::string_view(message).starts_with(agent::kLaneMark)) {
            services_->deliverToLane(from, message.substr(agent::kLaneMark.size()));
        } else {
            services_->deliverNotification(from.name, std::move(message));
        }
        return {};
    }

    uint64_t add(const MemoryRegion& region) {
        const MutexLock lock(mutex_);
        const uint64_t id = ++lastId_;
        const RegistrationList::Entry entry{region.address, region.size, region.deviceId,
                                            std::string(region.metadata)};
        regions_[id] = memory::RegionPtr(new memory::Region(region.type, entry, id, kGeneration));
        return id;
    }
    void end() {
        const MutexLock lock(mutex_);
        services_ = nullptr;
    }

    static constexpr uint32_t kGeneration = 1;

  private:
    const std::string name_;
    Mutex mutex_;
    TestServices* services_ NIXL_GUARDED_BY(mutex_);
    uint64_t lastId_ NIXL_GUARDED_BY(mutex_) = 0;
    std::map<uint64_t, memory::RegionPtr> regions_ NIXL_GUARDED_BY(mutex_);
};

TestServices::TestServices(std::string agent_name) : name_(std::move(agent_name)) {
    std::random_device random;
    for (uint8_t& byte : incarnation_) {
        byte = static_cast<uint8_t>(random());
    }
    auto reactor = base::EpollReactor::create();
    if (!reactor.ok()) {
        std::fprintf(stderr, "test services: %s\n", reactor.status().message().c_str());
        std::abort();
    }
    reactor_ = std::move(reactor).value();
    target_ = std::make_shared<Target>(*this);
    peer::enterLocalAgent(incarnation_, target_);
}

TestServices::~TestServices() {
    peer::leaveLocalAgent(incarnation_);
    target_->end();
}

void TestServices::log(LogLevel level, std::string_view message) {
    const MutexLock lock(mutex_);
    lines_.emplace_back(level, message);
}

void TestServices::count(std::string_view name, uint64_t amount) {
    const MutexLock lock(mutex_);
    counters_[std::string(name)] += amount;
}

void TestServices::deliverNotification(std::string_view from, std::string message) {
    const MutexLock lock(mutex_);
    notifications_.emplace_back(from, std::move(message));
}

void TestServices::notifyPeer(const PlanPeer& peer,
                              std::string message,
                              std::function<void(Status)> done) {
    const auto there = peer::findLocalAgent(peer.incarnation);
    if (there == nullptr) {
        deliverNotification("", std::move(message));
        return done({});
    }
    done(there->deliverLocal({name_, incarnation_}, std::move(message)));
}

void TestServices::sendLaneMessage(const PlanPeer& peer,
                                   std::string_view lane,
                                   std::string_view message,
                                   const std::function<void(Status)>& done) {
    notifyPeer(peer, agent::markedForLane(lane, message), done);
}

void TestServices::listenToLane(std::string_view lane, const LaneListener& call) {
    const MutexLock lock(mutex_);
    listeners_[std::string(lane)] = call;
}

void TestServices::deliverToLane(const peer::Identity& from, const std::string& message) {
    LaneListener call;
    const size_t end = message.find('\0');
    {
        const MutexLock lock(mutex_);
        call = listeners_[message.substr(0, end)];
    }
    if (call != nullptr) {
        call({from.name, from.incarnation, from.incarnation == incarnation_},
             std::string_view(message).substr(end + 1));
    }
}

Result<std::unique_ptr<Backend>> TestServices::createLaneBackend(LaneBackendSpec spec) {
    std::vector<std::unique_ptr<Lane>> lanes;
    lanes.push_back(peer::makeLocalLane({name_, incarnation_}, *this,
                                        std::chrono::microseconds(spec.inlineBudgetMicroseconds)));
    return peer::makeLaneBackend(std::move(spec), std::move(lanes));
}

uint64_t TestServices::addRegion(const MemoryRegion& region) {
    return target_->add(region);
}

std::vector<std::string> TestServices::lines(LogLevel level) const {
    const MutexLock lock(mutex_);
    std::vector<std::string> found;
    for (const auto& [line_level, text] : lines_) {
        if (line_level == level) {
            found.push_back(text);
        }
    }
    return found;
}

std::vector<std::pair<std::string, std::string>> TestServices::takeNotifications() {
    const MutexLock lock(mutex_);
    return std::exchange(notifications_, {});
}

uint64_t TestServices::counter(std::string_view name) const {
    const MutexLock lock(mutex_);
    const auto found = counters_.find(name);
    return found != counters_.end() ? found->second : 0;
}

}  // namespace nixl::testkit
