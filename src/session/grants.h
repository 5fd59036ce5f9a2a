// With which grants the regions of a peer are reached: that of its whole metadata opens them all,
// that of a partial blob those it names. Built once, then shared and immutable.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>

#include "session/network_access.h"
#include "session/wire.h"

namespace nixl::peer {

struct Grant {
    Grant() = default;
    explicit Grant(const Key& its_key) : key(its_key), id(grantId(its_key)) {}
    Key key{};
    GrantId id = 0;
};

class Grants {
  public:
    // One for every region.
    explicit Grants(const Key& key) : newest_(key), all_(true) {}
    // Of a partial blob.
    Grants(const Key& key, std::span<const uint64_t> regions) { add(key, regions); }

    // Another partial blob; nothing new where one grant opens every region.
    void add(const Key& key, std::span<const uint64_t> regions) {
        if (all_) {
            return;
        }
        newest_ = Grant(key);
        for (const uint64_t region : regions) {
            regions_[region] = newest_;
        }
    }
    // What the handshake proves: any of them will do, the newest is known longest.
    const Grant& forSession() const { return newest_; }
    const Grant& of(uint64_t region) const {
        const auto found = regions_.find(region);
        return found == regions_.end() ? newest_ : found->second;
    }

  private:
    Grant newest_;
    bool all_ = false;
    std::unordered_map<uint64_t, Grant> regions_;
};

using GrantsPtr = std::shared_ptr<const Grants>;

}  // namespace nixl::peer
