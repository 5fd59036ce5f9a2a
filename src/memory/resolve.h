// Turns a descriptor list into ranges that each lie in one region, compressed where the list is.
// Values; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nixl/descriptor.h"

namespace nixl::memory {

// Region index of a descriptor that lies in several neighbouring regions: see pieces.
inline constexpr uint32_t kSplit = UINT32_MAX;

// Where a descriptor begins: a range [address, end) in which it may lie, and the region's index.
struct FoundRange {
    uint64_t address = 0;
    uint64_t end = 0;
    uint32_t region = 0;
};

// Finds the region for a place. Implementations number the regions they hand out from 0.
class RangeFinder {
  public:
    virtual ~RangeFinder() = default;
    // A region that holds [address, address + size), else one that holds `address` and reaches
    // furthest; false where none does.
    virtual bool find(uint64_t device, uint64_t address, uint64_t size, FoundRange& found) = 0;
    // For messages: what the ranges are ("registered").
    virtual std::string what() const = 0;
};

struct ResolvedSide {
    struct Entry {
        uint64_t address = 0;
        uint64_t size = 0;
        uint32_t region = 0;
    };
    struct Run {
        uint64_t address = 0;
        uint64_t size = 0;
        uint64_t stride = 0;
        uint64_t count = 0;
        uint64_t start = 0;  // index of its first descriptor
        uint32_t region = 0;
    };
    struct Piece {
        uint64_t index = 0;  // of the descriptor
        uint64_t address = 0;
        uint64_t size = 0;
        uint32_t region = 0;
    };

    MemType type = MemType::DRAM;
    uint64_t count = 0;
    uint64_t bytes = 0;
    // Exactly one of flat and runs is non-empty (unless count is 0). `flat` views the list that
    // was resolved, which must outlive its use.
    std::span<const Descriptor> flat;
    std::vector<uint32_t> flatRegions;  // of flat, one each; empty: all lie in region 0
    std::vector<Run> runs;
    std::vector<Piece> pieces;  // by index; of the descriptors whose region is kSplit

    // The index-th descriptor. REQUIRES: index < count
    Entry at(uint64_t index) const;
    // The same where the list is flat.
    Entry flatAt(uint64_t index) const {
        const Descriptor& d = flat[index];
        return {d.address, d.size, flatRegions.empty() ? 0 : flatRegions[index]};
    }
    // Its pieces. REQUIRES: at(index).region == kSplit
    std::span<const Piece> piecesOf(uint64_t index) const;
};

// INVALID_PARAM where a range overflows, NOT_FOUND where it is not registered; both name the
// index and the range. The side may view the list.
Status resolveList(const DescriptorList& list, RangeFinder& finder, ResolvedSide& side);

}  // namespace nixl::memory
