// From a plan to requests: which ranges of which objects go where. Owned by a transfer; unchanged
// once made.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nixl/backend.h"

#include "settings.h"

namespace nixl::obj {

// What the backend keeps of a registration.
class Memory final : public BackendMemory {
  public:
    Memory() = default;
    explicit Memory(std::string name) : key(std::move(name)) {}
    std::string identity() const override { return key; }

    const std::string key;  // empty for memory
};

// Contiguous bytes on both sides.
struct Piece {
    uint64_t offset = 0;  // in the object
    uint64_t size = 0;
    char* memory = nullptr;
    uint64_t planOffset = 0;
    int device = -1;  // of the memory: a GPU, or -1 for the host
};

// One object of a plan, with its pieces in the order of their offsets.
struct PlannedObject {
    std::string key;
    size_t firstPiece = 0;
    size_t pieceCount = 0;
    uint64_t size = 0;        // of a write: all of it
    uint64_t registered = 0;  // where its longest registration ends
};

// A range that one request reads: from `offset`, `size` bytes, which begin in `firstPiece`.
struct Range {
    uint32_t object = 0;
    size_t firstPiece = 0;
    size_t pieceCount = 0;
    uint64_t offset = 0;
    uint64_t size = 0;
    bool whole = false;  // of the object, as far as its registration tells
};

struct Layout {
    std::vector<PlannedObject> objects;
    std::vector<Piece> pieces;
    std::vector<Range> ranges;  // of a read
    bool gpu = false;           // some memory is a GPU's

    std::span<const Piece> piecesOf(const PlannedObject& object) const {
        return {pieces.data() + object.firstPiece, object.pieceCount};
    }
};

// Limits of S3's multipart uploads.
struct PartLimits {
    uint64_t parts = 10'000;
    uint64_t partBytes = 5ULL << 30;
};
// The size of each part but the last; 0 where the object is too large for any.
uint64_t choosePartSize(uint64_t object, uint64_t wished, const PartLimits& limits = {});

// Why a plan cannot be carried out, or how. With `merge` a write may be a part of its object.
Result<Layout> makeLayout(const TransferPlan& plan, const Settings& settings);

// Reads pieces one after the other; `offset` is the place in the object.
class PieceCursor {
  public:
    PieceCursor(std::span<const Piece> pieces, uint64_t offset) : pieces_(pieces) { seek(offset); }
    void seek(uint64_t offset);
    struct Place {
        char* memory = nullptr;
        uint64_t size = 0;
        int device = -1;
    };
    // The memory at the place, up to `most` bytes; no bytes in a gap or at the end.
    Place place(uint64_t most) const;
    // How far the gap at the place goes: UINT64_MAX after the last piece.
    uint64_t gap() const;
    void advance(uint64_t bytes);
    uint64_t offset() const { return offset_; }

  private:
    void settle();

    std::span<const Piece> pieces_;
    size_t index_ = 0;
    uint64_t offset_ = 0;
};

}  // namespace nixl::obj
