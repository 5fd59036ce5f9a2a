// The lanes host and stream, as the engine adds them to every backend on lanes.
#pragma once

#include <memory>
#include <vector>

#include "nixl/lane.h"

#include "peer/engine.h"

namespace nixl::peer {

std::vector<std::unique_ptr<Lane>> makeNetworkLanes(const std::shared_ptr<EngineImpl>& engine,
                                                    const LaneOptions& options);

}  // namespace nixl::peer
