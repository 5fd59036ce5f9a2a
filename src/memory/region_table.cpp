// See region_table.h.
#include "memory/region_table.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "base/log.h"

namespace nixl::memory {
namespace {

std::string entryText(MemType type, size_t index, const RegistrationList::Entry& entry) {
    char text[160];
    std::snprintf(text, sizeof(text), "descriptor %zu: %s range [0x%llx, +%llu) of device %llu",
                  index, memTypeName(type), static_cast<unsigned long long>(entry.address),
                  static_cast<unsigned long long>(entry.size),
                  static_cast<unsigned long long>(entry.deviceId));
    return text;
}

// Looks up the regions one backend holds, given the map of devices. Memory must lie inside a
// region; of files, blocks and objects the device id names the thing, and any range of it may be
// moved: the newest registration counts.
template <typename Devices>
class LocalFinder final : public RangeFinder {
  public:
    LocalFinder(const Devices& devices,
                MemType type,
                unsigned backend,
                std::vector<RegionUse>& regions)
        : devices_(devices), type_(type), backend_(backend), regions_(regions) {}

    bool find(uint64_t device, uint64_t address, uint64_t size, FoundRange& found) override {
        const auto at = devices_.find({type_, device});
        if (at == devices_.end()) {
            return false;
        }
        if (!isMemory(type_)) {
            Region* const newest = at->second.newestOf(backend_);
            found = {0, UINT64_MAX, newest == nullptr ? 0 : indexOf(newest)};
            return newest != nullptr;
        }
        Region* best = nullptr;
        at->second.tree.atPoint(address, [&](Region& region) {
            if (region.holding(backend_) == nullptr || region.revoked()) {
                return false;
            }
            if (best == nullptr || better(region, *best, address, size)) {
                best = &region;
            }
            return region.covers(address, size);
        });
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

    const Devices& devices_;
    MemType type_;
    unsigned backend_;
    std::vector<RegionUse>& regions_;
    std::unordered_map<Region*, uint32_t> indices_;
};

// Whether a held registration and a new one under the same device id are of the same thing.
bool sameThing(const Region& region,
               const Region::Holding& held,
               const RegistrationList::Entry& entry,
               const BackendMemory& fresh) {
    const std::string before = held.memory->identity();
    const std::string now = fresh.identity();
    return before.empty() && now.empty() ? region.metadata == entry.metadata : before == now;
}

}  // namespace

Region* RegionTable::exact(MemType type, const RegistrationList::Entry& entry) const {
    const auto device = devices_.find({type, entry.deviceId});
    if (device == devices_.end()) {
        return nullptr;
    }
    Region* match = nullptr;
    device->second.tree.atPoint(entry.address, [&](Region& region) {
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
    Device& device = devices_[{type, entry.deviceId}];
    device.tree.insert(region);
    if (!isMemory(type)) {
        region->older_ = device.newest;
        (device.newest != nullptr ? device.newest->newer_ : device.newest) = region;
        device.newest = region;
    }
    byId_[id - 1] = region;
    ++count_;
    Total& total = totals_[type];
    ++total.regions;
    total.bytes += entry.size;
    touch(id);
    return region;
}

void RegionTable::leave(Region* region) {
    const Key key{region->type, region->deviceId};
    Device& device = devices_.at(key);
    byId_[region->id - 1] = nullptr;
    freeIds_.push_back(region->id);
    touch(region->id);
    if (!isMemory(region->type)) {
        (region->newer_ != nullptr ? region->newer_->older_ : device.newest) = region->older_;
        if (region->older_ != nullptr) {
            region->older_->newer_ = region->newer_;
        }
    }
    device.tree.erase(region);
    --count_;
    Total& total = totals_[region->type];
    --total.regions;
    total.bytes -= region->size;
    eraseIfUnused(key);
}

void RegionTable::eraseIfUnused(const Key& key) {
    const auto device = devices_.find(key);
    if (device->second.tree.empty() && device->second.replaced == 0) {
        devices_.erase(device);
    }
}

Region* RegionTable::Device::newestOf(unsigned backend) const {
    Region* region = newest;
    while (region != nullptr && (region->revoked() || region->holding(backend) == nullptr)) {
        region = region->older_;
    }
    return region;
}

// Ends what is registered under the addition's device id but is another thing. What was registered
// exactly so counts on in the new one: who registered it may still take it back.
RegionTable::Carried RegionTable::endStale(MemType type,
                                           const Addition& addition,
                                           std::string& told) {
    Carried carried;
    const RegistrationList::Entry& entry = *addition.entry;
    const Key key{type, entry.deviceId};
    for (const auto& [backend, memory] : addition.memories) {
        const auto at = devices_.find(key);
        if (at == devices_.end()) {
            break;
        }
        Device& device = at->second;
        // All that one backend holds under a device id is the same thing, so one look tells.
        Region* const newest = device.newestOf(backend);
        if (newest == nullptr || sameThing(*newest, *newest->holding(backend), entry, *memory)) {
            continue;
        }
        told += (told.empty() ? "" : " ") + std::to_string(entry.deviceId);
        device.replaced += 1;  // keeps the device while its regions leave
        for (Region* region = device.newest; region != nullptr;) {
            Region* const older = region->older_;
            if (!region->revoked() && region->holding(backend) != nullptr) {
                const bool exactly = region->address == entry.address &&
                                     region->size == entry.size &&
                                     region->metadata == entry.metadata;
                for (const Region::Holding& held : region->holdings) {
                    if (exactly && held.backend == backend) {
                        carried.emplace_back(backend, held.count);
                    } else {
                        device.replaced += held.count;
                    }
                }
                region->replace();
                leaving_.emplace_back(region);
                leave(region);
            }
            region = older;
        }
        device.replaced -= 1;
        eraseIfUnused(key);
    }
    return carried;
}

// Takes the backends' memories of what was replaced and is no longer used.
void RegionTable::collectQuiet(std::vector<Region::Holding>& gone) {
    const auto busy = std::partition(leaving_.begin(), leaving_.end(),
                                     [](const RegionPtr& region) { return region->pins() != 0; });
    for (auto region = busy; region != leaving_.end(); ++region) {
        auto& held = (*region)->holdings;
        std::move(held.begin(), held.end(), std::back_inserter(gone));
        held.clear();
    }
    leaving_.erase(busy, leaving_.end());
}

void RegionTable::add(MemType type, std::vector<Addition> additions) {
    std::vector<std::unique_ptr<BackendMemory>> spare;  // destroyed after the lock
    std::vector<Region::Holding> gone;                  // the same
    std::string told;
    {
        WriteLock lock(mutex_);
        for (Addition& addition : additions) {
            enterOne(type, addition, spare, told);
        }
        collectQuiet(gone);
    }
    if (!told.empty() && base::logs(LogLevel::DEBUG)) {
        base::log(LogLevel::DEBUG, std::string(memTypeName(type)) +
                                       " registered anew for something else, which ends what was "
                                       "registered before: device " +
                                       told);
    }
}

void RegionTable::enterOne(MemType type,
                           Addition& addition,
                           std::vector<std::unique_ptr<BackendMemory>>& spare,
                           std::string& told) {
    const Carried carried = isMemory(type) ? Carried() : endStale(type, addition, told);
    Region* region = exact(type, *addition.entry);
    const bool fresh = region == nullptr;
    if (fresh) {
        region = enter(type, *addition.entry);
    }
    for (auto& [backend, memory] : addition.memories) {
        if (Region::Holding* held = region->holding(backend); held != nullptr) {
            ++held->count;
            spare.push_back(std::move(memory));
        } else {
            region->holdings.push_back({backend, 1, std::move(memory)});
            if (!fresh) {
                touch(region->id);
            }
        }
    }
    for (const auto& [backend, count] : carried) {
        region->holding(backend)->count += count;
    }
}

// Whether a registration of this device id went for a newer one and was not taken back yet.
bool RegionTable::takeReplaced(MemType type,
                               const RegistrationList::Entry& entry,
                               std::vector<Taken>& taken) {
    const Key key{type, entry.deviceId};
    const auto device = devices_.find(key);
    if (device == devices_.end() || device->second.replaced == 0) {
        return false;
    }
    device->second.replaced -= 1;
    taken.push_back({RegionPtr(), 0, key});
    eraseIfUnused(key);
    return true;
}

Status RegionTable::take(const RegistrationList& list,
                         const std::vector<unsigned>& backends,
                         std::vector<Taken>& taken,
                         std::vector<RegionPtr>& leaving) {
    for (size_t i = 0; i < list.entries.size(); ++i) {
        if (isMemory(list.type()) && list.entries[i].size == 0) {
            continue;  // registering it entered nothing
        }
        Region* region = exact(list.type(), list.entries[i]);
        if (region == nullptr) {
            if (takeReplaced(list.type(), list.entries[i], taken)) {
                continue;
            }
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
            taken.push_back({RegionPtr(region), backend, {}});
        }
        if (!any) {
            if (takeReplaced(list.type(), list.entries[i], taken)) {
                continue;
            }
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
        if (!one.region) {
            devices_[one.key].replaced += 1;
            continue;
        }
        ++one.region->holding(one.backend)->count;
    }
    for (const RegionPtr& region : leaving) {
        region->restore();
        touch(region->id);  // somebody may have looked meanwhile
    }
}

void RegionTable::touch(uint64_t id) {
    changes_.push_back(id);
    if (changes_.size() > kMaxChanges) {
        changes_.pop_front();
    }
    version_.fetch_add(1, std::memory_order_release);
}

std::optional<std::vector<uint64_t>> RegionTable::changedSince(uint64_t version) const {
    const ReadLock lock(mutex_);
    const uint64_t now = version_.load(std::memory_order_relaxed);
    if (version > now || now - version > changes_.size()) {
        return std::nullopt;
    }
    std::vector<uint64_t> ids(changes_.end() - static_cast<std::ptrdiff_t>(now - version),
                              changes_.end());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
}

void RegionTable::changedAltogether() {
    const WriteLock lock(mutex_);
    changes_.clear();
    version_.fetch_add(1, std::memory_order_release);
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
    collectQuiet(gone);
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
    LocalFinder finder(devices_, list.type(), backend, regions);
    return resolveList(list, finder, side);
}

RegionPtr RegionTable::byId(uint64_t id) const {
    ReadLock lock(mutex_);
    return id == 0 || id > byId_.size() ? RegionPtr() : RegionPtr(byId_[id - 1]);
}

std::map<MemType, RegionTable::Total> RegionTable::totals() const {
    ReadLock lock(mutex_);
    return totals_;
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
    for (const RegionPtr& region : leaving_) {
        std::move(region->holdings.begin(), region->holdings.end(), std::back_inserter(gone));
        region->holdings.clear();
    }
    leaving_.clear();
    devices_.clear();
    byId_.clear();
    freeIds_.clear();
    count_ = 0;
    totals_.clear();
}

}  // namespace nixl::memory
