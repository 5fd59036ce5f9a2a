// See region_table.h.
#include "memory/region_table.h"

#include <algorithm>
#include <string>
#include <unordered_map>

namespace nixl::memory {
namespace {

bool isMemory(MemType type) {
    return type == MemType::DRAM || type == MemType::VRAM;
}

std::string entryText(MemType type, size_t index, const RegistrationList::Entry& entry) {
    char text[160];
    std::snprintf(text, sizeof(text), "descriptor %zu: %s range [0x%llx, +%llu) of device %llu",
                  index, memTypeName(type), static_cast<unsigned long long>(entry.address),
                  static_cast<unsigned long long>(entry.size),
                  static_cast<unsigned long long>(entry.deviceId));
    return text;
}

// Looks up the regions one backend holds. Memory must lie inside a region; of files, blocks and
// objects the device id names the thing, and any range of it may be moved.
class LocalFinder final : public RangeFinder {
  public:
    LocalFinder(const std::map<std::pair<MemType, uint64_t>, IntervalTree>& trees,
                MemType type,
                unsigned backend,
                std::vector<RegionUse>& regions)
        : trees_(trees), type_(type), backend_(backend), regions_(regions) {}

    bool find(uint64_t device, uint64_t address, uint64_t size, FoundRange& found) override {
        const auto tree = trees_.find({type_, device});
        if (tree == trees_.end()) {
            return false;
        }
        Region* best = nullptr;
        const auto usable = [&](Region& region) {
            return region.holding(backend_) != nullptr && !region.revoked();
        };
        tree->second.atPoint(address, [&](Region& region) {
            if (!usable(region)) {
                return false;
            }
            if (best == nullptr || better(region, *best, address, size)) {
                best = &region;
            }
            return isMemory(type_) && region.covers(address, size);
        });
        if (!isMemory(type_)) {
            if (best == nullptr) {
                tree->second.all([&](Region& region) {
                    if (usable(region) && (best == nullptr || region.id > best->id)) {
                        best = &region;
                    }
                });
            }
            found = {0, UINT64_MAX, best == nullptr ? 0 : indexOf(best)};
            return best != nullptr;
        }
        if (best == nullptr) {
            return false;
        }
        found = {best->address, best->end(), indexOf(best)};
        return true;
    }
    std::string what() const override { return "registered"; }

  private:
    static bool better(const Region& a, const Region& b, uint64_t address, uint64_t size) {
        const bool a_covers = a.covers(address, size);
        const bool b_covers = b.covers(address, size);
        if (a_covers != b_covers) {
            return a_covers;
        }
        return a.end() != b.end() ? a.end() > b.end() : a.id > b.id;
    }
    uint32_t indexOf(Region* region) {
        const auto [at, fresh] =
            indices_.try_emplace(region, static_cast<uint32_t>(regions_.size()));
        if (fresh) {
            regions_.push_back({RegionPtr(region), region->holding(backend_)->memory.get()});
        }
        return at->second;
    }

    const std::map<std::pair<MemType, uint64_t>, IntervalTree>& trees_;
    MemType type_;
    unsigned backend_;
    std::vector<RegionUse>& regions_;
    std::unordered_map<Region*, uint32_t> indices_;
};

}  // namespace

Region* RegionTable::exact(MemType type, const RegistrationList::Entry& entry) const {
    const auto tree = trees_.find({type, entry.deviceId});
    if (tree == trees_.end()) {
        return nullptr;
    }
    Region* match = nullptr;
    tree->second.atPoint(entry.address, [&](Region& region) {
        if (region.address == entry.address && region.size == entry.size && !region.revoked() &&
            (isMemory(type) || region.metadata == entry.metadata)) {
            match = &region;
        }
        return match != nullptr;
    });
    return match;
}

Region* RegionTable::enter(MemType type, const RegistrationList::Entry& entry) {
    if (freeIds_.empty()) {
        byId_.push_back(nullptr);
        generations_.push_back(0);
        freeIds_.push_back(byId_.size());
    }
    const uint64_t id = freeIds_.back();
    freeIds_.pop_back();
    auto* region = new Region(type, entry, id, ++generations_[id - 1]);
    trees_[{type, entry.deviceId}].insert(region);
    byId_[id - 1] = region;
    ++count_;
    return region;
}

void RegionTable::leave(Region* region) {
    const auto tree = trees_.find({region->type, region->deviceId});
    byId_[region->id - 1] = nullptr;
    freeIds_.push_back(region->id);
    tree->second.erase(region);
    if (tree->second.empty()) {
        trees_.erase(tree);
    }
    --count_;
}

void RegionTable::add(MemType type, std::vector<Addition> additions) {
    std::vector<std::unique_ptr<BackendMemory>> spare;  // destroyed after the lock
    WriteLock lock(mutex_);
    for (Addition& addition : additions) {
        Region* region = exact(type, *addition.entry);
        if (region == nullptr) {
            region = enter(type, *addition.entry);
        }
        for (auto& [backend, memory] : addition.memories) {
            if (Region::Holding* held = region->holding(backend); held != nullptr) {
                ++held->count;
                spare.push_back(std::move(memory));
            } else {
                region->holdings.push_back({backend, 1, std::move(memory)});
            }
        }
    }
}

Status RegionTable::take(const RegistrationList& list,
                         const std::vector<unsigned>& backends,
                         std::vector<Taken>& taken,
                         std::vector<RegionPtr>& leaving) {
    for (size_t i = 0; i < list.entries.size(); ++i) {
        Region* region = exact(list.type(), list.entries[i]);
        if (region == nullptr) {
            return Status::notFound(
                entryText(list.type(), i, list.entries[i]) + " is not registered exactly so",
                static_cast<int64_t>(i));
        }
        bool any = false;
        bool left = false;
        for (const unsigned backend : backends) {
            Region::Holding* held = region->holding(backend);
            if (held == nullptr || held->count == 0) {
                continue;
            }
            any = true;
            left = --held->count == 0 || left;
            taken.push_back({RegionPtr(region), backend});
        }
        if (!any) {
            return Status::notFound(entryText(list.type(), i, list.entries[i]) +
                                        " is not registered with the backends named",
                                    static_cast<int64_t>(i));
        }
        if (left) {
            region->revoke();
            leaving.emplace_back(region);
        }
    }
    return {};
}

void RegionTable::giveBack(const std::vector<Taken>& taken, const std::vector<RegionPtr>& leaving) {
    for (const Taken& one : taken) {
        ++one.region->holding(one.backend)->count;
    }
    for (const RegionPtr& region : leaving) {
        region->restore();
    }
}

Status RegionTable::remove(const RegistrationList& list,
                           const std::vector<unsigned>& backends,
                           base::Deadline deadline,
                           const RemovalFence* fence) {
    std::vector<Taken> taken;
    std::vector<RegionPtr> leaving;
    const auto undo = [&] {
        {
            WriteLock lock(mutex_);
            giveBack(taken, leaving);
        }
        for (const RegionPtr& region : leaving) {
            if (fence != nullptr) {
                fence->restore(*region);
            }
        }
    };
    {
        WriteLock lock(mutex_);
        if (Status status = take(list, backends, taken, leaving); !status.ok()) {
            giveBack(taken, leaving);
            return status;
        }
    }
    if (fence != nullptr && !leaving.empty()) {
        for (const RegionPtr& region : leaving) {
            fence->revoke(*region);
        }
        if (Status quiet = fence->awaitQuiet(deadline); !quiet.ok()) {
            undo();
            return {quiet.code(), quiet.message() + "; it stays registered"};
        }
    }
    for (const RegionPtr& region : leaving) {
        if (!region->waitQuiet(deadline)) {
            const uint32_t users = region->pins();
            undo();
            return Status::timeout(
                entryText(region->type, 0, {region->address, region->size, region->deviceId, {}}) +
                " is still used by " + std::to_string(users) +
                " posted transfer(s); it stays registered");
        }
    }
    std::vector<Region::Holding> gone;  // destroyed after the lock
    WriteLock lock(mutex_);
    for (const RegionPtr& region : leaving) {
        auto& held = region->holdings;
        const auto still = std::partition(held.begin(), held.end(),
                                          [](const Region::Holding& h) { return h.count > 0; });
        if (still != held.begin()) {
            // Others keep it, under a new identity: what was prepared with the old one is refused.
            Region* heir = enter(
                region->type, {region->address, region->size, region->deviceId, region->metadata});
            std::move(held.begin(), still, std::back_inserter(heir->holdings));
        }
        std::move(still, held.end(), std::back_inserter(gone));
        held.clear();
        leave(region.get());
    }
    return {};
}

std::vector<unsigned> RegionTable::backendsOf(MemType type,
                                              const RegistrationList::Entry& entry) const {
    std::vector<unsigned> backends;
    ReadLock lock(mutex_);
    if (Region* region = exact(type, entry); region != nullptr) {
        for (const Region::Holding& held : region->holdings) {
            backends.push_back(held.backend);
        }
    }
    return backends;
}

Status RegionTable::resolve(const DescriptorList& list,
                            unsigned backend,
                            ResolvedSide& side,
                            std::vector<RegionUse>& regions) const {
    ReadLock lock(mutex_);
    LocalFinder finder(trees_, list.type(), backend, regions);
    return resolveList(list, finder, side);
}

RegionPtr RegionTable::byId(uint64_t id) const {
    ReadLock lock(mutex_);
    return id == 0 || id > byId_.size() ? RegionPtr() : RegionPtr(byId_[id - 1]);
}

size_t RegionTable::size() const {
    ReadLock lock(mutex_);
    return count_;
}

void RegionTable::clear() {
    std::vector<Region::Holding> gone;
    WriteLock lock(mutex_);
    for (Region* region : byId_) {
        if (region != nullptr) {
            region->revoke();
            std::move(region->holdings.begin(), region->holdings.end(), std::back_inserter(gone));
            region->holdings.clear();
        }
    }
    trees_.clear();
    byId_.clear();
    freeIds_.clear();
    count_ = 0;
}

}  // namespace nixl::memory
