// Lane `gpunetio`: GPU memory of agents with DOCA, by requests that a kernel on the GPU posts to
// the network adapter. Threads: as nixl/backend.h.
#pragma once

#include <memory>

#include "nixl/lane.h"
#include "nixl/services.h"

#include "engine.h"

namespace nixl::gpunetio {

std::unique_ptr<Lane> makeGpunetioLane(PluginServices& services, std::shared_ptr<Engine> engine);

}  // namespace nixl::gpunetio
