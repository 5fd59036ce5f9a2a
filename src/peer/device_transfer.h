// Transfers over the stream lane whose own side lies in memory of GPUs: cut into slices that pass
// through page-locked buffers, a few at a time, so that the copies of one run beside the network's
// turn with another. Threads: as nixl/backend.h.
#pragma once

#include <memory>

#include "nixl/backend.h"

#include "peer/engine_impl.h"

namespace nixl::peer {

std::unique_ptr<BackendTransfer> makeStagedTransfer(std::shared_ptr<EngineImpl> engine,
                                                    std::shared_ptr<Link> link,
                                                    const TransferPlan& plan,
                                                    bool checksum);

}  // namespace nixl::peer
