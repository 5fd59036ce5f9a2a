// Transfers to agents of other processes: one prepared transfer that goes over the host or the
// stream lane, whichever the session to the peer turns out to allow.
// Threads: as nixl/backend.h.
#pragma once

#include <memory>

#include "nixl/backend.h"

#include "peer/engine_impl.h"

namespace nixl::peer {

std::unique_ptr<BackendTransfer> makeRemoteTransfer(std::shared_ptr<EngineImpl> engine,
                                                    std::shared_ptr<Link> link,
                                                    const TransferPlan& plan,
                                                    const LaneOptions& options);

}  // namespace nixl::peer
