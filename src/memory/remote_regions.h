// The ranges a peer has told us of: immutable once built, sorted, looked up by range.
// Threads: const calls from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nixl/backend.h"

#include "memory/resolve.h"

namespace nixl::memory {

struct RemoteRegion {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t deviceId = 0;
    uint64_t id = 0;
    uint32_t generation = 0;
    uint32_t backends = 0;  // bit i: the i-th backend of the peer's blob holds it
    MemType type = MemType::DRAM;
};

class RemoteRegions {
  public:
    RemoteRegions() = default;
    explicit RemoteRegions(std::vector<RemoteRegion> regions);

    size_t size() const noexcept { return regions_.size(); }
    const RemoteRegion& at(size_t index) const { return regions_[index]; }
    // Resolves `list` among the regions that the backend of this bit holds; `used` maps the side's
    // region indices to regions.
    Status resolve(const DescriptorList& list,
                   uint32_t backend_bit,
                   const std::string& peer,
                   ResolvedSide& side,
                   std::vector<const RemoteRegion*>& used) const;

  private:
    friend class RemoteFinder;
    std::vector<RemoteRegion> regions_;  // by type, device, address
    std::vector<uint64_t> maxEnd_;       // over the regions before and here, per type and device
};

}  // namespace nixl::memory
