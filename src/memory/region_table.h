// All ranges an agent has registered, by memory type and device: sorted, counted, range-aware.
// Duplicates, overlaps and neighbours are legal. A device id of storage names one thing at a time:
// registering it anew for another one ends what was registered before.
//
// Threads: every call is safe from any thread; look-ups share the lock. Backends' memories are
// destroyed without it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "memory/intervals.h"
#include "memory/resolve.h"

namespace nixl::memory {

// A region as one backend sees it.
struct RegionUse {
    RegionPtr region;
    BackendMemory* memory = nullptr;  // lives until the region is quiet after being revoked
};

// What else must be quiet before a region goes: accesses of other processes. Any may be empty.
struct RemovalFence {
    std::function<void(const Region&)> revoke;
    std::function<void(const Region&)> restore;
    std::function<Status(base::Deadline)> awaitQuiet;
};

class RegionTable {
  public:
    // One range with what each backend made of it, ready to be entered.
    struct Addition {
        const RegistrationList::Entry* entry = nullptr;
        std::vector<std::pair<unsigned, std::unique_ptr<BackendMemory>>> memories;
    };

    // Enters all. A range that is there already is counted; its spare memory is dropped. What is
    // registered under a storage device id that names another thing now goes, as soon as no posted
    // transfer uses it; taking it back later is no error.
    void add(MemType type, std::vector<Addition> additions);

    // Takes every entry of `list` back once from each of `backends`. Regions nobody holds any more
    // go, after every pin is gone: TIMEOUT at the deadline, and then nothing has changed.
    // NOT_FOUND names the first entry that is not registered there; nothing has changed.
    Status remove(const RegistrationList& list,
                  const std::vector<unsigned>& backends,
                  base::Deadline deadline,
                  const RemovalFence* fence = nullptr);

    // The backends that hold exactly this range (all of `list`'s first entry).
    std::vector<unsigned> backendsOf(MemType type, const RegistrationList::Entry& entry) const;

    // Resolves `list` for one backend; keeps the regions in `regions`, in the order of the
    // side's region indices. NOT_FOUND names index and range.
    Status resolve(const DescriptorList& list,
                   unsigned backend,
                   ResolvedSide& side,
                   std::vector<RegionUse>& regions) const;

    // The region of this id, or null.
    RegionPtr byId(uint64_t id) const;
    // Calls `visit(const Region&)` for every region that is not leaving, by type, device and
    // address, under the table's lock.
    template <typename Visit>
    void forEach(const Visit& visit) const {
        ReadLock lock(mutex_);
        for (const auto& [key, device] : devices_) {
            device.tree.all([&](const Region& region) {
                if (!region.revoked()) {
                    visit(region);
                }
            });
        }
    }
    size_t size() const;
    struct Total {
        uint64_t regions = 0;
        uint64_t bytes = 0;
    };
    std::map<MemType, Total> totals() const;

    // Grows with every region that comes, goes or changes hands. Never 0.
    uint64_t version() const noexcept { return version_.load(std::memory_order_acquire); }
    // The ids of regions that came, went or changed hands after `version`, sorted; empty where that
    // is too long ago to tell.
    std::optional<std::vector<uint64_t>> changedSince(uint64_t version) const;
    // Something beside the regions has changed for those who know them: nothing before can be told.
    void changedAltogether();
    static constexpr size_t kMaxChanges = 64 << 10;  // that are remembered

    // Revokes everything and forgets the backends' memories, for the agent's end.
    void clear();

  private:
    using Key = std::pair<MemType, uint64_t>;
    // What is registered under one memory type and device id.
    struct Device {
        IntervalTree tree;
        Region* newest = nullptr;  // storage: the youngest region, see Region::older_
        uint64_t replaced = 0;     // registrations that went for a newer one, not yet taken back
        Region* newestOf(unsigned backend) const;
    };
    struct Taken {
        RegionPtr region;  // null: one of the replaced registrations of `key`
        unsigned backend = 0;
        Key key{};
    };
    using Carried = std::vector<std::pair<unsigned, uint32_t>>;  // backend and count

    Carried endStale(MemType type, const Addition& addition, std::string& told)
        NIXL_REQUIRES(mutex_);
    void enterOne(MemType type,
                  Addition& addition,
                  std::vector<std::unique_ptr<BackendMemory>>& spare,
                  std::string& told) NIXL_REQUIRES(mutex_);
    void collectQuiet(std::vector<Region::Holding>& gone) NIXL_REQUIRES(mutex_);
    bool takeReplaced(MemType type, const RegistrationList::Entry& entry, std::vector<Taken>& taken)
        NIXL_REQUIRES(mutex_);
    void eraseIfUnused(const Key& key) NIXL_REQUIRES(mutex_);
    Region* enter(MemType type, const RegistrationList::Entry& entry) NIXL_REQUIRES(mutex_);
    void leave(Region* region) NIXL_REQUIRES(mutex_);
    Region* exact(MemType type, const RegistrationList::Entry& entry) const
        NIXL_REQUIRES_SHARED(mutex_);
    Status take(const RegistrationList& list,
                const std::vector<unsigned>& backends,
                std::vector<Taken>& taken,
                std::vector<RegionPtr>& leaving) NIXL_REQUIRES(mutex_);
    void touch(uint64_t id) NIXL_REQUIRES(mutex_);
    void giveBack(const std::vector<Taken>& taken, const std::vector<RegionPtr>& leaving)
        NIXL_REQUIRES(mutex_);

    mutable SharedMutex mutex_;
    std::map<Key, Device> devices_ NIXL_GUARDED_BY(mutex_);
    std::map<MemType, Total> totals_ NIXL_GUARDED_BY(mutex_);
    // Replaced, with posted transfers that still used them when last looked at.
    std::vector<RegionPtr> leaving_ NIXL_GUARDED_BY(mutex_);
    // Dense by id (ids start at 1 and grow); slots of regions that left are null.
    std::vector<Region*> byId_ NIXL_GUARDED_BY(mutex_);
    std::vector<uint64_t> freeIds_ NIXL_GUARDED_BY(mutex_);
    std::vector<uint32_t> generations_ NIXL_GUARDED_BY(mutex_);
    size_t count_ NIXL_GUARDED_BY(mutex_) = 0;
    std::atomic<uint64_t> version_{1};                      // written with the mutex held
    std::deque<uint64_t> changes_ NIXL_GUARDED_BY(mutex_);  // ids; the last one is of version_
};

}  // namespace nixl::memory
