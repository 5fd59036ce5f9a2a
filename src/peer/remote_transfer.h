// Transfers to agents of other processes: one prepared transfer that goes over the host or the
// stream lane, whichever the session to the peer turns out to allow.
// Threads: as nixl/backend.h.
#pragma once

#include <memory>
#include <vector>

#include "nixl/lane.h"

#include "peer/engine.h"

namespace nixl::peer {

std::vector<std::unique_ptr<Lane>> makeNetworkLanes(const std::shared_ptr<EngineImpl>& engine,
                                                    const LaneOptions& options);

}  // namespace nixl::peer
