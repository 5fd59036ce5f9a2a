// Lane `fabric`: one-sided operations of libfabric over one or several devices. Threads: as
// nixl/backend.h.
#pragma once

#include <cstdint>
#include <memory>

#include "nixl/lane.h"
#include "nixl/services.h"

#include "fabric_rails.h"

namespace nixl::fabric {

struct FabricOptions {
    RailOptions rails;
    uint64_t stripingThreshold = 128 << 10;
};

std::unique_ptr<Lane> makeFabricLane(PluginServices& services, FabricOptions options);

}  // namespace nixl::fabric
