// How lanes over a library know a peer and end a post; also of other plugins (see ../libfabric,
// ../mooncake, ../gpunetio). Threads: any.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nixl/backend.h"
#include "nixl/services.h"

namespace nixl {

// One for each agent object, also where a name comes back.
inline std::string peerKey(const PlanPeer& peer) {
    std::string key(peer.name);
    key.append(reinterpret_cast<const char*>(peer.incarnation.data()), peer.incarnation.size());
    return key;
}

// The same error, with the name of the agent that it is about.
inline Status naming(std::string_view agent, Status status) {
    if (status.message().find(agent) != std::string::npos) {
        return status;
    }
    return {status.code(), "agent \"" + std::string(agent) + "\": " + status.message()};
}

// For libraries that do not tell which of the bytes are in place: none is said to be.
inline std::vector<SegmentFailure> allOf(const TransferPlan& plan, const Status& status) {
    std::vector<SegmentFailure> failures;
    if (status.code() != ErrorCode::CANCELED) {
        failures.push_back({0, plan.bytes, 0, 0});
    }
    return failures;
}

// The end of a post whose bytes have been moved, or have not. `notification`: sent before the end
// is told; null where there is none. `failures`: where the status is an error.
inline void endPost(PluginServices& services,
                    const PlanPeer& peer,
                    const CompletionPtr& completion,
                    Status moved,
                    std::vector<SegmentFailure> failures,
                    const std::string* notification) {
    if (!moved.ok()) {
        completion->fail(naming(peer.name, std::move(moved)), std::move(failures));
    } else if (notification != nullptr) {
        services.notifyPeer(peer, *notification, [completion](Status sent) {
            sent.ok() ? completion->succeed() : completion->fail(std::move(sent));
        });
    } else {
        completion->succeed();
    }
}

}  // namespace nixl
