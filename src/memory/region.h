// One registered range: reference-counted, pinned while transfers use it, node of the interval
// tree of its table.
//
// Threads: pin, unpin and the constants from any thread; the rest under the owning table's lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nixl/backend.h"

#include "base/futex.h"

namespace nixl::memory {

// Whether ranges of this type are addresses; all else is storage.
inline bool isMemory(MemType type) {
    return type == MemType::DRAM || type == MemType::VRAM;
}

class Region {
  public:
    Region(MemType type, const RegistrationList::Entry& entry, uint64_t id, uint32_t generation)
        : type(type),
          address(entry.address),
          size(entry.size),
          deviceId(entry.deviceId),
          id(id),
          generation(generation),
          metadata(entry.metadata) {}
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

    const MemType type;
    const uint64_t address;
    const uint64_t size;
    const uint64_t deviceId;
    const uint64_t id;
    const uint32_t generation;
    const std::string metadata;

    uint64_t end() const noexcept { return address + size; }
    // Where the tree takes it to end: an empty range can be found too.
    uint64_t treeEnd() const noexcept {
        return size == 0 && end() != UINT64_MAX ? end() + 1 : end();
    }
    bool covers(uint64_t start, uint64_t bytes) const noexcept {
        return start >= address && bytes <= size && start - address <= size - bytes;
    }

    // Keeps the range registered until unpin(); false once it is being deregistered.
    bool pin() noexcept {
        if ((pins_.fetch_add(1, std::memory_order_acq_rel) & kRevoked) == 0) {
            return true;
        }
        unpin();
        return false;
    }
    void unpin() noexcept {
        if (pins_.fetch_sub(1, std::memory_order_acq_rel) == (kRevoked | 1)) {
            base::futexWakeAll(pins_);
        }
    }
    bool revoked() const noexcept {
        return (pins_.load(std::memory_order_acquire) & kRevoked) != 0;
    }
    // From here on pin() fails.
    void revoke() noexcept { pins_.fetch_or(kRevoked, std::memory_order_acq_rel); }
    // The same for good, since its device id was registered anew for something else.
    void replace() noexcept {
        replaced_.store(true, std::memory_order_release);
        revoke();
    }
    bool replaced() const noexcept { return replaced_.load(std::memory_order_acquire); }
    void restore() noexcept { pins_.fetch_and(~kRevoked, std::memory_order_acq_rel); }
    // Waits until no pin is left; false at the deadline. REQUIRES: revoked, table not locked.
    bool waitQuiet(base::Deadline deadline);
    // REQUIRES for a lasting answer: revoked.
    uint32_t pins() const noexcept { return pins_.load(std::memory_order_acquire) & ~kRevoked; }

    // What each backend keeps of it, and how often it was registered there.
    struct Holding {
        unsigned backend = 0;
        uint32_t count = 0;
        std::unique_ptr<BackendMemory> memory;
    };
    std::vector<Holding> holdings;
    Holding* holding(unsigned backend) noexcept;

    void ref() noexcept { refs_.fetch_add(1, std::memory_order_relaxed); }
    void unref() noexcept {
        if (refs_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            delete this;
        }
    }

  private:
    friend class IntervalTree;
    friend class RegionTable;
    static constexpr uint32_t kRevoked = 0x8000'0000;

    std::atomic<uint32_t> refs_{0};
    std::atomic<uint32_t> pins_{0};
    std::atomic<bool> replaced_{false};
    // Storage: the regions of one device id by age, in the table.
    Region* older_ = nullptr;
    Region* newer_ = nullptr;
    // Treap: ordered by (address, id), heap by priority; maxEnd_ over the subtree.
    Region* left_ = nullptr;
    Region* right_ = nullptr;
    uint64_t maxEnd_ = 0;
    uint32_t priority_ = 0;
};

// Shared ownership of a Region.
class RegionPtr {
  public:
    RegionPtr() = default;
    explicit RegionPtr(Region* region) : region_(region) {
        if (region_ != nullptr) {
            region_->ref();
        }
    }
    RegionPtr(const RegionPtr& other) : RegionPtr(other.region_) {}
    RegionPtr(RegionPtr&& other) noexcept : region_(std::exchange(other.region_, nullptr)) {}
    RegionPtr& operator=(RegionPtr other) noexcept {
        std::swap(region_, other.region_);
        return *this;
    }
    ~RegionPtr() {
        if (region_ != nullptr) {
            region_->unref();
        }
    }
    Region* get() const noexcept { return region_; }
    Region* operator->() const noexcept { return region_; }
    Region& operator*() const noexcept { return *region_; }
    explicit operator bool() const noexcept { return region_ != nullptr; }

  private:
    Region* region_ = nullptr;
};

}  // namespace nixl::memory
