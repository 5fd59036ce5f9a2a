// See maps.h.
#include "lanes/host/maps.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <sys/mman.h>
#include <sys/stat.h>

#include "base/system_error.h"
#include "device/devices.h"
#include "lanes/host/device_card.h"
#include "lanes/host/shared_memory.h"

namespace nixl::peer {

char* MappedRegion::find(uint64_t address, uint64_t& room) const {
    const auto piece = std::upper_bound(pieces.begin(), pieces.end(), address,
                                        [](uint64_t at, const Piece& one) { return at < one.end; });
    if (piece == pieces.end()) {
        room = UINT64_MAX - address;
        return nullptr;
    }
    if (address < piece->begin) {
        room = piece->begin - address;
        return nullptr;
    }
    room = piece->end - address;
    return piece->at + (address - piece->begin);
}

MappedRegionPtr RegionMap::mapped() const {
    const MutexLock lock(mutex_);
    return mapped_;
}

std::string RegionMap::reason() const {
    const MutexLock lock(mutex_);
    return reason_;
}

bool RegionMap::pending() const {
    const MutexLock lock(mutex_);
    return state_ != State::ANSWERED;
}

void RegionMap::resolve(MappedRegionPtr mapped, std::string reason) {
    const MutexLock lock(mutex_);
    state_ = State::ANSWERED;
    answered_ = Clock::now();
    whole_.store(mapped != nullptr && mapped->whole, std::memory_order_release);
    // The old one, and with it perhaps a mapping, goes after the lock.
    mapped_.swap(mapped);
    reason_ = std::move(reason);
}

RegionMapPtr HostMaps::want(uint64_t id, uint32_t generation, bool gpu) {
    const auto found = regions_.find(id);
    RegionMapPtr entry;
    if (found != regions_.end() && found->second->generation == generation) {
        entry = found->second;
        const MutexLock lock(entry->mutex_);
        if (entry->state_ != RegionMap::State::ANSWERED || entry->mapped_ != nullptr ||
            RegionMap::Clock::now() - entry->answered_ < kAskAgain) {
            return entry;
        }
        entry->state_ = RegionMap::State::WANTED;
    } else {
        if (found == regions_.end() && regions_.size() >= kMaxRegions) {
            return nullptr;
        }
        entry = std::make_shared<RegionMap>(id, generation, gpu);
        regions_[id] = entry;
    }
    wanted_.push_back(entry);
    return entry;
}

std::vector<MapRequest::Region> HostMaps::nextRequest(const Grants& grants, Grant& grant) {
    std::vector<MapRequest::Region> next;
    if (awaiting_) {
        return next;
    }
    while (!wanted_.empty() && next.size() < kMaxMapRegions) {
        const Grant& its = grants.of(wanted_.back()->id);
        if (next.empty()) {
            grant = its;
        } else if (its.id != grant.id) {
            break;
        }
        const RegionMapPtr entry = std::move(wanted_.back());
        wanted_.pop_back();
        const auto found = regions_.find(entry->id);
        if (found == regions_.end() || found->second != entry) {
            entry->resolve(nullptr, "the region has been registered anew");
            continue;
        }
        const MutexLock lock(entry->mutex_);
        entry->state_ = RegionMap::State::ASKED;
        next.push_back({entry->id, entry->generation});
    }
    awaiting_ = !next.empty();
    return next;
}

Result<std::shared_ptr<PeerFile>> HostMaps::mapFile(const base::Fd& fd) {
    struct stat info {};
    if (fstat(fd.get(), &info) < 0) {
        return Status::backend("fstat", errno);
    }
    std::weak_ptr<PeerFile>& mark = files_[{info.st_dev, info.st_ino}];
    if (auto known = mark.lock()) {
        return known;
    }
    // The peer says so too, but it is this process that would be killed.
    if (std::string why = whyNotMappable(fd.get()); !why.empty()) {
        return Status::notSupported(std::move(why));
    }
    const auto size = static_cast<uint64_t>(info.st_size);
    if (files() >= kMaxFiles) {
        return Status::notSupported("the limit of " + std::to_string(kMaxFiles) +
                                    " files mapped of one peer is reached");
    }
    void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) {
        return base::systemError("mapping the peer's memory", errno);
    }
    auto file = std::make_shared<PeerFile>();
    file->mapping = Mapping(at, size);
    file->size = size;
    // A child of this process has no agents, and must not keep the peer's memory alive.
    madvise(at, size, MADV_DONTFORK);
    mark = file;
    return file;
}

MappedRegionPtr HostMaps::map(const MapReply::Region& region,
                              const std::vector<base::Fd>& files,
                              std::string& reason) {
    auto mapped = std::make_shared<MappedRegion>();
    for (const MapPiece& piece : region.pieces) {
        auto file = mapFile(files[piece.file]);
        if (!file.ok()) {
            reason = file.status().message();
            continue;
        }
        if (piece.offset + piece.size > file.value()->size) {
            reason = "the peer offers more of a file than it has";
            continue;
        }
        mapped->pieces.push_back({piece.address, piece.address + piece.size,
                                  file.value()->mapping.as<char>() + piece.offset});
        mapped->files.push_back(std::move(file).value());
    }
    mapped->whole = reason.empty();
    return mapped->pieces.empty() ? nullptr : mapped;
}

MappedRegionPtr HostMaps::mapDevice(const MapReply::Region& region,
                                    const std::vector<base::Fd>& files,
                                    std::string& reason) {
    if (region.pieces.size() != 1) {
        return nullptr;
    }
    const MapPiece& piece = region.pieces.front();
    Result<DeviceExport> card = readDeviceCard(files, piece.file);
    if (!card.ok()) {
        reason = card.status().message();
        return nullptr;
    }
    const DeviceExport& from = card.value();
    if (piece.address < from.base || piece.size > from.size ||
        piece.address - from.base > from.size - piece.size) {
        reason = "the peer offers more of an allocation than it has";
        closeDeviceCard(from);
        return nullptr;
    }
    Result<std::shared_ptr<DeviceMemory>> memory = device::devices().importMemory(from);
    if (!memory.ok()) {
        reason = memory.status().message();
        return nullptr;
    }
    auto mapped = std::make_shared<MappedRegion>();
    mapped->gpu = std::move(memory).value();
    mapped->gpuBase = from.base;
    mapped->whole = reason.empty();
    return mapped;
}

Status HostMaps::take(const MapReply& reply, const std::vector<base::Fd>& files) {
    if (reply.answers && !std::exchange(awaiting_, false)) {
        return Status::invalidParam("MAP_REPLY frame without a request");
    }
    for (const MapReply::Region& region : reply.regions) {
        const auto found = regions_.find(region.id);
        if (found == regions_.end() || found->second->generation != region.generation) {
            continue;  // registered anew meanwhile
        }
        if (!reply.answers) {
            if (region.pieces.empty()) {
                found->second->resolve(nullptr, region.reason);
                regions_.erase(found);
            }
            continue;
        }
        std::string reason = region.reason;
        MappedRegionPtr mapped =
            found->second->gpu ? mapDevice(region, files, reason) : map(region, files, reason);
        found->second->resolve(std::move(mapped), std::move(reason));
    }
    std::erase_if(files_, [](const auto& one) { return one.second.expired(); });
    return {};
}

void HostMaps::dropRevoked(const HostPeer& host) {
    std::erase_if(regions_, [&](const auto& one) {
        if (host.valid(one.second->id, one.second->generation)) {
            return false;
        }
        one.second->resolve(nullptr, "the region has been deregistered");
        return true;
    });
    std::erase_if(files_, [](const auto& one) { return one.second.expired(); });
}

void HostMaps::connectionLost() {
    awaiting_ = false;
    for (const auto& [id, entry] : regions_) {
        const MutexLock lock(entry->mutex_);
        if (entry->state_ == RegionMap::State::ASKED) {
            entry->state_ = RegionMap::State::WANTED;
            wanted_.push_back(entry);
        }
    }
}

void HostMaps::sessionLost() {
    awaiting_ = false;
    wanted_.clear();
    std::erase_if(regions_, [](const auto& one) { return one.second.use_count() == 1; });
    for (const auto& [id, entry] : regions_) {
        entry->resolve(nullptr, "no session");
        const MutexLock lock(entry->mutex_);
        entry->state_ = RegionMap::State::WANTED;
        wanted_.push_back(entry);
    }
    files_.clear();
}

size_t HostMaps::files() const {
    return static_cast<size_t>(std::count_if(
        files_.begin(), files_.end(), [](const auto& one) { return !one.second.expired(); }));
}

}  // namespace nixl::peer
