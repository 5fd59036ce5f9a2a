// Spreads a plan over workers or devices; also of other plugins (see ../libfabric). Threads: any.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nixl/backend.h"

namespace nixl {

// Deals the bytes of runs out into at most `parts` of about the same size, each of segments of at
// most `piece` bytes; parts of less than `least` bytes are not made.
std::vector<std::vector<PlanRun>> dealRuns(
    std::span<const PlanRun> runs, uint64_t bytes, size_t parts, uint64_t piece, uint64_t least);

}  // namespace nixl
