// The in-memory index of one directory: fingerprint to extent, in least-recently-used order.
// Owned by a Directory and guarded by its mutex; not thread-safe by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "hicache/fingerprint.h"

namespace nixl::hicache {

inline constexpr uint32_t kNone = UINT32_MAX;

// One stored block. Ids are reused after erase; the version tells one use from another.
struct Entry {
    Fingerprint key;
    uint64_t version = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t segment = kNone;  // index into the directory's segments
    uint32_t checksum = 0;
    uint32_t touched = 0;  // seconds since 1970 of the last logged touch
    uint32_t newer = kNone;
    uint32_t older = kNone;
    uint16_t scope = 0;  // index into the directory's owners; 0: not known
    bool used = false;
};

class Index {
  public:
    Index();
    // The id of the entry of `key`, or kNone.
    uint32_t find(const Fingerprint& key) const noexcept;
    // REQUIRES: find(key) == kNone. The new entry is the most recently used.
    uint32_t insert(const Fingerprint& key);
    void erase(uint32_t id);
    void touch(uint32_t id);  // makes it the most recently used
    Entry& at(uint32_t id) { return entries_[id]; }
    const Entry& at(uint32_t id) const { return entries_[id]; }
    size_t size() const noexcept { return count_; }
    uint32_t capacity() const noexcept { return static_cast<uint32_t>(entries_.size()); }
    uint32_t oldest() const noexcept { return oldest_; }

  private:
    size_t home(const Fingerprint& key) const noexcept { return key.low & (table_.size() - 1); }
    size_t bucketOf(uint32_t id) const noexcept;
    void unlink(uint32_t id);
    void linkNewest(uint32_t id);
    void grow();

    std::vector<Entry> entries_;
    std::vector<uint32_t> free_;
    std::vector<uint32_t> table_;  // entry ids, open addressing, power of two
    size_t count_ = 0;
    uint32_t newest_ = kNone;
    uint32_t oldest_ = kNone;
};

}  // namespace nixl::hicache
