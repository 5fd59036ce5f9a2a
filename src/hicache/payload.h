// Payload between memory and segment files, moved by the store itself: one vectored call for many
// blocks, each piece checksummed while the cache still holds it, on as many threads as pay. For
// local files; everything else travels through an agent. Stateless; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nixl/error.h"

#include "hicache/batch.h"

namespace nixl::hicache {

// One block and its place. Its item becomes FAILED where the system refused; with `checksums` a
// written one is given its checksum, and one that was read becomes CORRUPT where it differs.
struct Piece {
    Item* item = nullptr;
    std::span<const Part> parts;
    const std::string* path = nullptr;
};

struct MoveOptions {
    bool write = false;
    bool checksums = false;
    bool direct = false;  // O_DIRECT: every part must be aligned to 4 KiB, address and length
    bool create = false;  // the files are made; they must not exist
};

// A failure is that of the first piece that failed; the others are moved nevertheless.
Status movePieces(std::vector<Piece> pieces, const MoveOptions& options);

}  // namespace nixl::hicache
