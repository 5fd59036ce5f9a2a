// See layout.h.
#include "layout.h"

#include <algorithm>
#include <map>

namespace nixl::obj {

namespace {

Status checkSides(const TransferPlan& plan) {
    for (const PlanRegion& region : plan.localRegions) {
        if (region.type != MemType::DRAM && region.type != MemType::VRAM) {
            return Status::notSupported(std::string("OBJ: the memory side is ") +
                                        memTypeName(region.type) +
                                        "; only DRAM and VRAM are supported");
        }
    }
    for (const PlanRegion& region : plan.remoteRegions) {
        if (region.type != MemType::OBJECT) {
            return Status::notSupported(std::string("OBJ: the storage side is ") +
                                        memTypeName(region.type) + "; only OBJ is supported");
        }
    }
    return {};
}

// The pieces of the plan, by object and offset. Regions of one key are one object.
void collect(const TransferPlan& plan, Layout& layout) {
    std::map<std::string_view, uint32_t> numbers;
    std::vector<uint32_t> object_of(plan.remoteRegions.size());
    for (size_t i = 0; i < plan.remoteRegions.size(); ++i) {
        const auto& memory = *static_cast<const Memory*>(plan.remoteRegions[i].memory);
        const auto [place, fresh] =
            numbers.emplace(memory.key, static_cast<uint32_t>(layout.objects.size()));
        object_of[i] = place->second;
        if (fresh) {
            layout.objects.push_back({memory.key});
        }
        uint64_t& registered = layout.objects[place->second].registered;
        registered =
            std::max(registered, plan.remoteRegions[i].address + plan.remoteRegions[i].size);
    }
    struct Sorted {
        uint32_t object;
        Piece piece;
    };
    std::vector<Sorted> sorted;
    sorted.reserve(plan.segments);
    SegmentCursor cursor(plan.runs);
    for (Segment segment; cursor.next(segment);) {
        const PlanRegion& near = plan.localRegions[segment.localRegion];
        const int device = near.type == MemType::VRAM ? static_cast<int>(near.deviceId) : -1;
        layout.gpu = layout.gpu || device >= 0;
        sorted.push_back({object_of[segment.remoteRegion],
                          {segment.remote, segment.size, reinterpret_cast<char*>(segment.local),
                           segment.planOffset, device}});
    }
    std::stable_sort(sorted.begin(), sorted.end(), [](const Sorted& a, const Sorted& b) {
        return a.object != b.object ? a.object < b.object : a.piece.offset < b.piece.offset;
    });
    layout.pieces.reserve(sorted.size());
    for (const Sorted& one : sorted) {
        PlannedObject& object = layout.objects[one.object];
        if (object.pieceCount++ == 0) {
            object.firstPiece = layout.pieces.size();
        }
        object.size = std::max(object.size, one.piece.offset + one.piece.size);
        layout.pieces.push_back(one.piece);
    }
}

std::string range(uint64_t first, uint64_t end) {
    return std::to_string(first) + " to " + std::to_string(end - 1);
}

Status checkWrite(const Layout& layout, const PlannedObject& object, const Settings& settings) {
    const std::string what = "OBJ: write \"" + settings.bucket + "/" + object.key + "\": ";
    uint64_t reached = 0;
    for (const Piece& piece : layout.piecesOf(object)) {
        if (piece.offset < reached && piece.size != 0) {
            return Status::invalidParam(
                what + "bytes " +
                range(piece.offset, std::min(reached, piece.offset + piece.size)) +
                " are written twice");
        }
        if (piece.offset > reached && !settings.mergeWrites) {
            return Status::notSupported(
                what + "bytes " + range(reached, piece.offset) +
                " are missing: an object is written whole, from 0 without gaps, unless "
                "partial_write is merge");
        }
        reached = std::max(reached, piece.offset + piece.size);
    }
    if (settings.mergeWrites && object.size > settings.mergeLimit) {
        return Status::notSupported(what + std::to_string(object.size) +
                                    " bytes are above merge_limit, " +
                                    std::to_string(settings.mergeLimit));
    }
    if (object.size > settings.multipartThreshold &&
        choosePartSize(object.size, settings.partSize) == 0) {
        return Status::notSupported(what + std::to_string(object.size) +
                                    " bytes are more than the largest object, 10,000 parts of 5G");
    }
    return {};
}

// Joins near pieces, and cuts what is long at multiples of the part size.
void makeRanges(Layout& layout, const Settings& settings) {
    for (uint32_t number = 0; number < layout.objects.size(); ++number) {
        const PlannedObject& object = layout.objects[number];
        const size_t last = object.firstPiece + object.pieceCount;
        for (size_t first = object.firstPiece; first < last;) {
            uint64_t end = layout.pieces[first].offset + layout.pieces[first].size;
            size_t next = first + 1;
            for (; next < last; ++next) {
                const Piece& piece = layout.pieces[next];
                const bool near = piece.offset >= end && piece.offset - end <= settings.joinGap;
                if (!near) {
                    break;  // too far, or the same bytes again: a request of its own
                }
                end = piece.offset + piece.size;
            }
            const uint64_t start = layout.pieces[first].offset;
            size_t piece = first;
            for (uint64_t at = start; at < end;) {
                const uint64_t cut = end - at > settings.partSize
                                         ? (at / settings.partSize + 1) * settings.partSize
                                         : end;
                const uint64_t stop = std::min(cut, end);
                while (piece + 1 < next &&
                       layout.pieces[piece].offset + layout.pieces[piece].size <= at) {
                    ++piece;
                }
                const bool whole = at == 0 && stop == object.registered;
                layout.ranges.push_back({number, piece, next - piece, at, stop - at, whole});
                at = stop;
            }
            first = next;
        }
    }
}

}  // namespace

uint64_t choosePartSize(uint64_t object, uint64_t wished, const PartLimits& limits) {
    constexpr uint64_t kStep = 1 << 20;
    const uint64_t least = (object + limits.parts - 1) / limits.parts;
    const uint64_t size = least <= wished ? wished : (least + kStep - 1) / kStep * kStep;
    return size <= limits.partBytes ? size : least <= limits.partBytes ? limits.partBytes : 0;
}

Result<Layout> makeLayout(const TransferPlan& plan, const Settings& settings) {
    NIXL_RETURN_IF_ERROR(checkSides(plan));
    Layout layout;
    collect(plan, layout);
    if (plan.op == OpType::READ) {
        makeRanges(layout, settings);
        return layout;
    }
    for (const PlannedObject& object : layout.objects) {
        NIXL_RETURN_IF_ERROR(checkWrite(layout, object, settings));
    }
    return layout;
}

void PieceCursor::seek(uint64_t offset) {
    offset_ = offset;
    const auto after =
        std::upper_bound(pieces_.begin(), pieces_.end(), offset,
                         [](uint64_t at, const Piece& one) { return at < one.offset; });
    index_ = static_cast<size_t>(after - pieces_.begin());
    index_ -= index_ > 0 ? 1 : 0;
    settle();
}

void PieceCursor::settle() {
    while (index_ < pieces_.size() && pieces_[index_].offset + pieces_[index_].size <= offset_) {
        ++index_;
    }
}

PieceCursor::Place PieceCursor::place(uint64_t most) const {
    if (index_ == pieces_.size() || pieces_[index_].offset > offset_) {
        return {};
    }
    const Piece& piece = pieces_[index_];
    const uint64_t done = offset_ - piece.offset;
    return {piece.memory + done, std::min(most, piece.size - done), piece.device};
}

uint64_t PieceCursor::gap() const {
    if (index_ == pieces_.size()) {
        return UINT64_MAX;
    }
    return pieces_[index_].offset > offset_ ? pieces_[index_].offset - offset_ : 0;
}

void PieceCursor::advance(uint64_t bytes) {
    offset_ += bytes;
    settle();
}

}  // namespace nixl::obj
