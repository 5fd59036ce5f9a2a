// A plan as the requests of an engine: segments cut into pieces that lie within one registered
// piece of memory at either end, and are not too large. A value; copyable.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "nixl/backend.h"

namespace nixl::mooncake {

// Where the pieces of each region's memory meet, by the region's index in the plan.
using Cuts = std::vector<std::vector<uint64_t>>;

class EntryCursor {
  public:
    // What is given must be valid as long as the cursor.
    EntryCursor(std::span<const PlanRun> runs, const Cuts& local, const Cuts& remote, uint64_t most)
        : cursor_(runs), local_(&local), remote_(&remote), most_(most) {}

    bool next(Segment& out) {
        while (rest_.size == 0) {
            if (!cursor_.next(rest_)) {
                return false;
            }
        }
        out = rest_;
        out.size = std::min(out.size, most_);
        out.size = std::min(out.size, room((*local_)[out.localRegion], out.local));
        out.size = std::min(out.size, room((*remote_)[out.remoteRegion], out.remote));
        rest_.local += out.size;
        rest_.remote += out.size;
        rest_.planOffset += out.size;
        rest_.size -= out.size;
        return true;
    }
    bool more() const {
        EntryCursor copy = *this;
        Segment ignored;
        return copy.next(ignored);
    }

  private:
    // Bytes from `at` to the next cut.
    static uint64_t room(const std::vector<uint64_t>& cuts, uint64_t at) {
        const auto next = std::upper_bound(cuts.begin(), cuts.end(), at);
        return next == cuts.end() ? UINT64_MAX : *next - at;
    }

    SegmentCursor cursor_;
    Segment rest_;
    const Cuts* local_;
    const Cuts* remote_;
    uint64_t most_;
};

}  // namespace nixl::mooncake
