// Lane `local` where memory of GPUs takes part: copies of the driver, on streams. Threads: as
// nixl/backend.h.
#pragma once

#include <memory>

#include "nixl/backend.h"
#include "nixl/services.h"

#include "session/target_access.h"

namespace nixl::peer {

std::unique_ptr<BackendTransfer> makeDeviceTransfer(const Identity& self,
                                                    const TransferPlan& plan,
                                                    std::weak_ptr<TargetAccess> target,
                                                    PluginServices& services);

}  // namespace nixl::peer
