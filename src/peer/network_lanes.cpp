// See network_lanes.h.
#include "peer/network_lanes.h"

#include <algorithm>
#include <utility>

#include "device/devices.h"
#include "device/plan_copy.h"
#include "peer/device_transfer.h"
#include "peer/engine_impl.h"
#include "peer/remote_transfer.h"

namespace nixl::peer {

namespace {

bool isDram(std::span<const PlanRegion> regions) {
    return std::all_of(regions.begin(), regions.end(),
                       [](const PlanRegion& region) { return region.type == MemType::DRAM; });
}

// Lane `host` or `stream`. Either may fall back to the other where that is allowed too: what a
// session permits is known only once it is open.
class NetworkLane final : public Lane {
  public:
    NetworkLane(std::shared_ptr<EngineImpl> engine, const LaneOptions& options, bool host)
        : engine_(std::move(engine)), options_(options), host_(host) {}

    const char* name() const override { return host_ ? "host" : "stream"; }

    LaneOffer offer(const TransferPlan& plan) override {
        if (plan.peer.self) {
            return {0, "the peer is this agent itself"};
        }
        // A side without GPUs needs no driver to send to one.
        if (!isDram(plan.localRegions) || (host_ && !isDram(plan.remoteRegions))) {
            if (const Status can = device::devices().available(); !can.ok()) {
                return {0, can.message()};
            }
        }
        const auto link = engine_->find(plan.peer.name, plan.peer.incarnation);
        if (link == nullptr || !link->hasMetadata()) {
            return {0, "no connection info of the peer"};
        }
        if (!host_) {
            return {40, "a socket to the peer"};
        }
        if (!link->hasEndpoints(engine_->bootId)) {
            return {0, "the peer is on another host"};
        }
        if (link->ready() && link->host().peer() == nullptr) {
            return {0, link->host().choice().reason};
        }
        return {80, "the peer is on this host"};
    }

    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        auto link = engine_->find(plan.peer.name, plan.peer.incarnation);
        if (link == nullptr) {
            return Status::notFound("agent \"" + std::string(plan.peer.name) +
                                    "\" has been removed");
        }
        LaneOptions options = options_;
        options.host = host_;
        options.stream = !host_ || options_.fallBack;
        if (device::touchesDevices(plan)) {
            auto streamed = options.stream ? streamOf(link, plan) : nullptr;
            return host_ ? makeMappedTransfer(engine_, std::move(link), plan, std::move(streamed))
                         : std::move(streamed);
        }
        return makeRemoteTransfer(engine_, std::move(link), plan, options);
    }

  private:
    // Over the stream lane, where memory of GPUs takes part: the peer's is the peer's affair.
    std::unique_ptr<BackendTransfer> streamOf(const std::shared_ptr<Link>& link,
                                              const TransferPlan& plan) const {
        if (!isDram(plan.localRegions)) {
            return makeStagedTransfer(engine_, link, plan, options_.checksum);
        }
        LaneOptions options = options_;
        options.host = false;
        options.stream = true;
        return makeRemoteTransfer(engine_, link, plan, options);
    }

    const std::shared_ptr<EngineImpl> engine_;
    const LaneOptions options_;
    const bool host_;
};

}  // namespace

std::vector<std::unique_ptr<Lane>> makeNetworkLanes(const std::shared_ptr<EngineImpl>& engine,
                                                    const LaneOptions& options) {
    std::vector<std::unique_ptr<Lane>> lanes;
    if (options.host) {
        lanes.push_back(std::make_unique<NetworkLane>(engine, options, true));
    }
    if (options.stream) {
        lanes.push_back(std::make_unique<NetworkLane>(engine, options, false));
    }
    return lanes;
}

}  // namespace nixl::peer
