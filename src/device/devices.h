// The devices of this process; see nixl/device.h.
#pragma once

#include "nixl/device.h"

namespace nixl::device {

Devices& devices();

}  // namespace nixl::device
