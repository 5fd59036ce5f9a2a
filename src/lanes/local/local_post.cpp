// See local_post.h.
#include "lanes/local/local_post.h"

#include <utility>

namespace nixl::peer {
namespace {

// Pins all remote regions of a plan at their owner, so that none is deregistered meanwhile.
Status pinTarget(TargetAccess& target, const TransferPlan& plan, std::vector<RegionPin>& pins) {
    pins.clear();  // of a post that was refused
    pins.reserve(plan.remoteRegions.size());
    for (const PlanRegion& region : plan.remoteRegions) {
        Result<RegionPin> pin = target.pin(region.id, region.generation);
        if (!pin.ok()) {
            return pin.status();
        }
        pins.push_back(std::move(pin).value());
    }
    return {};
}

}  // namespace

Status LocalPost::begin(const Identity& self,
                        const TransferPlan& plan,
                        const std::weak_ptr<TargetAccess>& agent,
                        CompletionPtr ending,
                        std::string_view text,
                        bool has_text) {
    target = agent.lock();
    if (target == nullptr) {
        return Status::disconnected("agent \"" + std::string(plan.peer.name) +
                                    "\" of this process has been destroyed");
    }
    if (!plan.peer.self) {
        NIXL_RETURN_IF_ERROR(pinTarget(*target, plan, pins));
    }
    notify = has_text;
    if (has_text) {
        notification = text;
        from = self;
    }
    completion = std::move(ending);
    return {};
}

void LocalPost::end(Status status, std::vector<SegmentFailure> failures) {
    const CompletionPtr ending = std::move(completion);
    if (status.ok() && notify) {
        status = target->deliverLocal(from, std::move(notification));
    }
    pins.clear();
    target.reset();
    if (status.ok()) {
        ending->succeed();
    } else if (status.code() == ErrorCode::CANCELED) {
        ending->cancel();
    } else {
        ending->fail(std::move(status), std::move(failures));
    }
}

}  // namespace nixl::peer
