// What is mapped of the remote regions that one prepared transfer touches. Immutable; what a map
// says of its region changes as the peer answers. Thread-safe.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lanes/host/maps.h"

namespace nixl::peer {

// Those regions that the plan does not touch are null.
class PlanMaps {
  public:
    explicit PlanMaps(std::vector<RegionMapPtr> maps) : maps_(std::move(maps)) {}

    std::span<const RegionMapPtr> all() const { return maps_; }

    struct Count {
        size_t regions = 0;
        size_t whole = 0;      // mapped from end to end
        size_t partly = 0;     // mapped in part
        bool pending = false;  // the peer has not answered for all
        std::string reason;    // why one of them is not
    };
    Count count() const {
        Count count;
        for (const RegionMapPtr& map : maps_) {
            if (map == nullptr) {
                continue;
            }
            ++count.regions;
            const MappedRegionPtr mapped = map->mapped();
            if (mapped != nullptr && mapped->whole) {
                ++count.whole;
                continue;
            }
            count.partly += mapped != nullptr ? 1 : 0;
            count.pending = count.pending || map->pending();
            count.reason = map->reason();
        }
        return count;
    }
    // Everything the plan touches is mapped.
    bool whole() const {
        return std::all_of(maps_.begin(), maps_.end(),
                           [](const RegionMapPtr& map) { return map == nullptr || map->whole(); });
    }

  private:
    const std::vector<RegionMapPtr> maps_;
};

}  // namespace nixl::peer
