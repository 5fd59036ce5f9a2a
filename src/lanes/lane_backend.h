// A network backend over lanes: for each plan it takes the usable lane with the highest score.
// What it registers is nothing but the fact; lanes find memory by region id and generation.
// Threads: as nixl/backend.h.
#pragma once

#include <memory>
#include <vector>

#include "nixl/lane.h"

namespace nixl::peer {

// `project_lanes` are the project's own; spec.lanes the plugin's. INVALID_PARAM names a wanted
// lane that neither has.
Result<std::unique_ptr<Backend>> makeLaneBackend(LaneBackendSpec spec,
                                                 std::vector<std::unique_ptr<Lane>> project_lanes);

}  // namespace nixl::peer
