// See services.h.
#include "agent/services.h"

#include "base/log.h"
#include "lanes/lane_backend.h"

namespace nixl::agent {

void BackendServices::log(LogLevel level, std::string_view message) {
    if (base::logs(level)) {
        base::log(level, backend_ + ": " + std::string(message));
    }
}

bool BackendServices::logs(LogLevel level) const {
    return base::logs(level);
}

void BackendServices::count(std::string_view name, uint64_t amount) {
    MutexLock lock(mutex_);
    const auto found = counters_.find(name);
    if (found != counters_.end()) {
        found->second += amount;
    } else {
        counters_.emplace(name, amount);
    }
}

void BackendServices::deliverNotification(std::string_view from, std::string message) {
    core_.shared->deliver({std::string(from), {}}, std::move(message), nullptr);
}

void BackendServices::notifyPeer(const PlanPeer& peer,
                                 std::string message,
                                 std::function<void(Status)> done) {
    core_.notify({std::string(peer.name), peer.incarnation}, std::move(message), std::move(done));
}

void BackendServices::connectPeer(const PlanPeer& peer, std::function<void(Status)> done) {
    core_.connect({std::string(peer.name), peer.incarnation}, std::move(done));
}

void BackendServices::sendLaneMessage(const PlanPeer& peer,
                                      std::string_view lane,
                                      std::string_view message,
                                      const std::function<void(Status)>& done) {
    core_.notify({std::string(peer.name), peer.incarnation}, markedForLane(lane, message), done);
}

void BackendServices::listenToLane(std::string_view lane, const LaneListener& call) {
    core_.shared->listenToLane(lane, call);
}

Result<std::unique_ptr<Backend>> BackendServices::createLaneBackend(LaneBackendSpec spec) {
    if (spec.wantedLanes.empty()) {
        spec.wantedLanes = core_.wantedLanes;
    }
    auto lanes = core_.lanes(*this, spec);
    if (!lanes.ok()) {
        return lanes.status();
    }
    return peer::makeLaneBackend(std::move(spec), std::move(lanes).value());
}

std::map<std::string, uint64_t> BackendServices::counters() const {
    MutexLock lock(mutex_);
    return {counters_.begin(), counters_.end()};
}

}  // namespace nixl::agent
