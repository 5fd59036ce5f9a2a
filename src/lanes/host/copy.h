// Copies a range of a plan between this process and another one of this host, in batches: through
// memory mapped here where it is, else by attaching. The plan must outlive the call. Thread-safe.
#pragma once

#include "nixl/backend.h"

#include "lanes/host/maps.h"
#include "lanes/host/pages.h"

namespace nixl::peer {

// Moves the bytes [begin, end) of the plan, counted over its segments in order. Looks at
// `completion` for a cancel between batches (CANCELED then). `verify`: what was copied is read once
// more from the other process and compared. On error `failure` names what is not in place.
// `maps` has an entry, perhaps null, for each remote region of the plan.
Status hostCopy(HostPeer& host,
                const TransferPlan& plan,
                std::span<const RegionMapPtr> maps,
                uint64_t begin,
                uint64_t end,
                const Completion& completion,
                bool verify,
                SegmentFailure& failure);

}  // namespace nixl::peer
