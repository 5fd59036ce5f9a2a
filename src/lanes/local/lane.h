// Lane `local`: between agents of one process (and an agent and itself) by memory copy, inline
// when small, on the copy pool when large. Threads: as nixl/backend.h.
#pragma once

#include <chrono>
#include <memory>

#include "nixl/lane.h"
#include "nixl/services.h"

#include "session/network_access.h"

namespace nixl::peer {

std::unique_ptr<Lane> makeLocalLane(const Identity& self,
                                    PluginServices& services,
                                    std::chrono::microseconds inline_budget);

}  // namespace nixl::peer
