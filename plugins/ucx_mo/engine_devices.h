// Which network devices each engine of UCX_MO takes. Threads: any.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

namespace nixl::ucx_mo {

// Deals the groups of `list` ("mlx5_0:1,mlx5_1:1;mlx5_2:1": groups are separated by ';', without
// one each device is a group) out to `engines` engines; 0: one for each group. Neighbours share an
// engine where there are more groups than engines; engines share groups where there are less.
// INVALID_PARAM names a device that is not among `present`, and those that are.
Result<std::vector<std::string>> dealDevices(std::string_view list,
                                             size_t engines,
                                             std::span<const std::string> present);

}  // namespace nixl::ucx_mo
