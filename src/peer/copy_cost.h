// What moving a plan between two processes of a host costs, for choosing where to copy it.
#pragma once

#include "nixl/backend.h"

#include "lanes/host/pages.h"

namespace nixl::peer {

// What a copy costs, measured on a plain 2-core machine: a batch, each piece, and the bytes.
struct CopyCost {
    double microsecondsPerBatch;
    double microsecondsPerSegment;
    double bytesPerMicrosecond;
    double of(const TransferPlan& plan) const {
        const uint64_t batches = plan.segments / HostPeer::kMaxVectors + 1;
        return microsecondsPerBatch * static_cast<double>(batches) +
               microsecondsPerSegment * static_cast<double>(plan.segments) +
               static_cast<double>(plan.bytes) / bytesPerMicrosecond;
    }
};
inline constexpr CopyCost kAttach{1.0, 0.3, 6'000};
inline constexpr CopyCost kMapped{0.3, 0.02, 8'000};

}  // namespace nixl::peer
