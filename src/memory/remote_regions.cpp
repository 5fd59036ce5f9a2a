// See remote_regions.h.
#include "memory/remote_regions.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>

namespace nixl::memory {
namespace {

auto keyOf(const RemoteRegion& region) {
    return std::tuple(region.type, region.deviceId, region.address);
}

bool sameSpace(const RemoteRegion& a, const RemoteRegion& b) {
    return a.type == b.type && a.deviceId == b.deviceId;
}

}  // namespace

class RemoteFinder final : public RangeFinder {
  public:
    RemoteFinder(const RemoteRegions& all,
                 MemType type,
                 uint32_t backend_bit,
                 const std::string& peer,
                 std::vector<const RemoteRegion*>& used)
        : all_(all), type_(type), bit_(backend_bit), peer_(peer), used_(used) {}

    bool find(uint64_t device, uint64_t address, uint64_t size, FoundRange& found) override {
        const auto& regions = all_.regions_;
        const auto after = std::upper_bound(
            regions.begin(), regions.end(), std::tuple(type_, device, address),
            [](const auto& key, const RemoteRegion& region) { return key < keyOf(region); });
        const RemoteRegion* best = nullptr;
        for (auto at = static_cast<size_t>(after - regions.begin()); at > 0; --at) {
            const RemoteRegion& region = regions[at - 1];
            if (region.type != type_ || region.deviceId != device ||
                all_.maxEnd_[at - 1] <= address) {
                break;
            }
            const uint64_t end = region.address + region.size;
            if (end <= address || (region.backends & bit_) == 0) {
                continue;
            }
            if (best == nullptr || end > best->address + best->size) {
                best = &region;
            }
            if (end - address >= size) {
                break;
            }
        }
        if (best == nullptr) {
            return false;
        }
        const auto [at, fresh] = indices_.try_emplace(best, static_cast<uint32_t>(used_.size()));
        if (fresh) {
            used_.push_back(best);
        }
        found = {best->address, best->address + best->size, at->second};
        return true;
    }
    std::string what() const override { return "in the metadata of agent \"" + peer_ + "\""; }

  private:
    const RemoteRegions& all_;
    MemType type_;
    uint32_t bit_;
    const std::string& peer_;
    std::vector<const RemoteRegion*>& used_;
    std::unordered_map<const RemoteRegion*, uint32_t> indices_;
};

RemoteRegions::RemoteRegions(std::vector<RemoteRegion> regions) : regions_(std::move(regions)) {
    const auto less = [](const RemoteRegion& a, const RemoteRegion& b) {
        return keyOf(a) < keyOf(b);
    };
    if (!std::is_sorted(regions_.begin(), regions_.end(), less)) {
        std::stable_sort(regions_.begin(), regions_.end(), less);
    }
    maxEnd_.reserve(regions_.size());
    for (size_t i = 0; i < regions_.size(); ++i) {
        uint64_t end = regions_[i].address + regions_[i].size;
        if (i > 0 && sameSpace(regions_[i - 1], regions_[i])) {
            end = std::max(end, maxEnd_.back());
        }
        maxEnd_.push_back(end);
    }
}

Status RemoteRegions::resolve(const DescriptorList& list,
                              uint32_t backend_bit,
                              const std::string& peer,
                              ResolvedSide& side,
                              std::vector<const RemoteRegion*>& used) const {
    RemoteFinder finder(*this, list.type(), backend_bit, peer, used);
    return resolveList(list, finder, side);
}

}  // namespace nixl::memory
