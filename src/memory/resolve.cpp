// See resolve.h.
#include "memory/resolve.h"

#include <algorithm>
#include <string>

namespace nixl::memory {
namespace {

std::string hex(uint64_t value) {
    char text[24];
    std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

std::string rangeText(MemType type, const Descriptor& d) {
    return std::string(memTypeName(type)) + " range [" + hex(d.address) + ", +" +
           std::to_string(d.size) + ") of device " + std::to_string(d.deviceId);
}

class Resolver {
  public:
    Resolver(MemType type, RangeFinder& finder, ResolvedSide& side)
        : type_(type), finder_(finder), side_(side) {}

    Status one(uint64_t index, const Descriptor& d, uint32_t& region) {
        // Most lists stay in one region for long.
        if (valid_ && d.deviceId == device_ && d.address >= last_.address &&
            d.address <= last_.end && d.size <= last_.end - d.address) {
            region = last_.region;
            return {};
        }
        return lookUp(index, d, region);
    }

    // Whether all of a run lies in one region.
    bool whole(const DescriptorRun& run, uint32_t& region) {
        const auto stride = static_cast<int64_t>(run.stride);
        const uint64_t magnitude =
            stride < 0 ? 0 - static_cast<uint64_t>(stride) : static_cast<uint64_t>(stride);
        uint64_t reach = 0;
        if (__builtin_mul_overflow(magnitude, run.count - 1, &reach) ||
            __builtin_add_overflow(reach, run.size, &reach)) {
            return false;
        }
        const uint64_t low = stride < 0 ? run.address - (reach - run.size) : run.address;
        uint64_t end = 0;
        FoundRange found;
        if ((stride < 0 && low > run.address) || __builtin_add_overflow(low, reach, &end) ||
            !finder_.find(run.deviceId, low, reach, found) || end > found.end ||
            low < found.address) {
            return false;
        }
        region = found.region;
        return true;
    }

    Status addBytes(uint64_t index, uint64_t bytes) {
        if (__builtin_add_overflow(side_.bytes, bytes, &side_.bytes)) {
            return Status::invalidParam("descriptor " + std::to_string(index) +
                                            ": the list's sizes add up to more than 2^64 bytes",
                                        static_cast<int64_t>(index));
        }
        return {};
    }

  private:
    Status lookUp(uint64_t index, const Descriptor& d, uint32_t& region) {
        uint64_t end = 0;
        if (__builtin_add_overflow(d.address, d.size, &end)) {
            return Status::invalidParam("descriptor " + std::to_string(index) + ": " +
                                            rangeText(type_, d) + " passes the end of addresses",
                                        static_cast<int64_t>(index));
        }
        FoundRange found;
        if (!finder_.find(d.deviceId, d.address, d.size, found)) {
            return missing(index, d, d.address);
        }
        if (end <= found.end) {
            last_ = found;
            device_ = d.deviceId;
            valid_ = true;
            region = found.region;
            return {};
        }
        region = kSplit;
        return splitUp(index, d, end, found);
    }

    Status splitUp(uint64_t index, const Descriptor& d, uint64_t end, FoundRange found) {
        uint64_t at = d.address;
        while (at < end) {
            const uint64_t stop = std::min(end, found.end);
            side_.pieces.push_back({index, at, stop - at, found.region});
            at = stop;
            if (at < end && (!finder_.find(d.deviceId, at, end - at, found) || found.end <= at)) {
                return missing(index, d, at);
            }
        }
        return {};
    }

    Status missing(uint64_t index, const Descriptor& d, uint64_t at) {
        std::string text = "descriptor " + std::to_string(index) + ": " + rangeText(type_, d) +
                           " is not " + finder_.what();
        if (at != d.address) {
            text += " from " + hex(at) + " on";
        }
        return Status::notFound(std::move(text), static_cast<int64_t>(index));
    }

    MemType type_;
    RangeFinder& finder_;
    ResolvedSide& side_;
    FoundRange last_;
    uint64_t device_ = 0;
    bool valid_ = false;
};

Status resolveFlat(const DescriptorList& list, Resolver& resolver, ResolvedSide& side) {
    side.flat = list.flat();
    uint64_t index = 0;
    for (const Descriptor& d : side.flat) {
        uint32_t region = 0;
        NIXL_RETURN_IF_ERROR(resolver.one(index, d, region));
        NIXL_RETURN_IF_ERROR(resolver.addBytes(index, d.size));
        if (region != 0 && side.flatRegions.empty()) {
            side.flatRegions.resize(side.flat.size());
        }
        if (!side.flatRegions.empty()) {
            side.flatRegions[index] = region;
        }
        ++index;
    }
    return {};
}

// A run that leaves its region is cut where the region changes.
Status resolveRun(const DescriptorRun& run,
                  uint64_t start,
                  Resolver& resolver,
                  ResolvedSide& side) {
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(run.size, run.count, &bytes)) {
        return Status::invalidParam("descriptor " + std::to_string(start) + ": a run of " +
                                        std::to_string(run.count) + " times " +
                                        std::to_string(run.size) + " bytes passes 2^64 bytes",
                                    static_cast<int64_t>(start));
    }
    NIXL_RETURN_IF_ERROR(resolver.addBytes(start, bytes));
    uint32_t region = 0;
    if (resolver.whole(run, region)) {
        side.runs.push_back({run.address, run.size, run.stride, run.count, start, region});
        return {};
    }
    for (uint64_t i = 0; i < run.count; ++i) {
        const Descriptor d{run.address + i * run.stride, run.size, run.deviceId};
        NIXL_RETURN_IF_ERROR(resolver.one(start + i, d, region));
        if (i > 0 && region != kSplit && side.runs.back().region == region) {
            ++side.runs.back().count;
        } else {
            side.runs.push_back({d.address, d.size, run.stride, 1, start + i, region});
        }
    }
    return {};
}

}  // namespace

Status resolveList(const DescriptorList& list, RangeFinder& finder, ResolvedSide& side) {
    side = ResolvedSide{};
    side.type = list.type();
    side.count = list.size();
    Resolver resolver(list.type(), finder, side);
    if (list.runs().empty()) {
        return resolveFlat(list, resolver, side);
    }
    for (size_t i = 0; i < list.runs().size(); ++i) {
        NIXL_RETURN_IF_ERROR(resolveRun(list.runs()[i], list.runStarts()[i], resolver, side));
    }
    return {};
}

ResolvedSide::Entry ResolvedSide::at(uint64_t index) const {
    if (runs.empty()) {
        return flatAt(index);
    }
    const auto after = std::upper_bound(runs.begin(), runs.end(), index,
                                        [](uint64_t i, const Run& run) { return i < run.start; });
    const Run& run = *(after - 1);
    return {run.address + (index - run.start) * run.stride, run.size, run.region};
}

std::span<const ResolvedSide::Piece> ResolvedSide::piecesOf(uint64_t index) const {
    const auto [first, last] =
        std::equal_range(pieces.begin(), pieces.end(), Piece{index, 0, 0, 0},
                         [](const Piece& a, const Piece& b) { return a.index < b.index; });
    return {first, last};
}

}  // namespace nixl::memory
