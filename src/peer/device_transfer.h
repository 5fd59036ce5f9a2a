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

// Lane `host` where memory of GPUs takes part: what the peer shares is mapped here, and the driver
// copies. `fallback` takes a post for which that is not possible; null: it fails then.
std::unique_ptr<BackendTransfer> makeMappedTransfer(std::shared_ptr<EngineImpl> engine,
                                                    std::shared_ptr<Link> link,
                                                    const TransferPlan& plan,
                                                    std::unique_ptr<BackendTransfer> fallback);

}  // namespace nixl::peer
