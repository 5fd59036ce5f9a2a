// What one call works on: an item per key, from look-up or reservation to its confirmed end, so
// that a thousand pages are one object. Owned by the caller; one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hicache/fingerprint.h"

namespace nixl::hicache {

enum class ItemState : uint8_t {
    MISS = 0,     // nothing is stored, or no longer
    HIT = 1,      // stored; the extent is known
    NEW = 2,      // an extent is reserved and waits for its payload
    STORED = 3,   // was there already; or is committed now
    REFUSED = 4,  // no extent: the cap, the disk, or a directory that cannot be written
    CORRUPT = 5,  // stored, but the bytes are not those that were set
    FAILED = 6,   // the payload could not be moved
    SIZE = 7,     // stored with another length than the caller expects
};

// The directory of a key that is too long to be stored.
inline constexpr uint16_t kNoDirectory = UINT16_MAX;

struct Item {
    Fingerprint key;
    uint64_t version = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t entry = 0;
    uint32_t segment = 0;
    uint32_t checksum = 0;
    uint32_t scope = 0;  // see scopeOf (reservations only)
    uint16_t directory = 0;
    bool held = false;  // a reserved extent that is neither stored nor given back yet
    ItemState state = ItemState::MISS;
};

// The contiguous bytes of one block in memory; several make up one block.
struct Part {
    uint64_t address = 0;
    uint64_t length = 0;
    uint64_t device = 0;
};

// A row of a descriptor array: address or offset, length, device.
struct Row {
    uint64_t address = 0;
    uint64_t length = 0;
    uint64_t device = 0;
};

struct Batch {
    std::vector<Item> items;
    std::string names;               // the keys, one after the other (reservations only)
    std::vector<uint64_t> nameEnds;  // where each ends

    std::string_view name(size_t i) const {
        const uint64_t from = i == 0 ? 0 : nameEnds[i - 1];
        return std::string_view(names).substr(from, nameEnds[i] - from);
    }
};

}  // namespace nixl::hicache
