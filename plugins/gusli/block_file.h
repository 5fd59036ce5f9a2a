// A registration of blocks: the device, as a file of plugins/posix. Owned by the core.
#pragma once

#include <memory>

#include "device.h"
#include "posix/file.h"

namespace nixl::gusli {

// The device behind a registration of BLOCK memory of this backend.
inline const Device& deviceOf(const BackendMemory& memory) {
    return *static_cast<const Device*>(static_cast<const posix::File&>(memory).owner());
}

}  // namespace nixl::gusli
