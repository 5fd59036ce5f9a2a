// Lane `ucx`: one-sided operations of the UCX library, for RDMA networks and GPU memory, and for
// whoever asks for it. Sleeps (and opens nothing) until asked for. Threads: as nixl/backend.h.
#pragma once

#include <memory>

#include "nixl/lane.h"
#include "nixl/services.h"

#include "ucx_context.h"

namespace nixl::ucx {

std::unique_ptr<Lane> makeUcxLane(PluginServices& services, UcxOptions options);

}  // namespace nixl::ucx
