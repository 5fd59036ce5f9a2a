// The frames by which one agent asks another of the same host to map its memory, and the answer:
// which pieces of which files a region consists of. docs/protocol.md describes them. Values; not
// thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "session/wire.h"

namespace nixl::peer {

inline constexpr size_t kMaxMapRegions = 32;  // in one request
inline constexpr size_t kMaxMapPieces = 32;   // of one region
inline constexpr size_t kMaxMapFiles = 64;    // that come along with one answer
inline constexpr size_t kMaxMapReason = 200;

struct MapRequest {
    struct Region {
        uint64_t id = 0;
        uint32_t generation = 0;
    };
    GrantProof grant;
    std::vector<Region> regions;
    void encode(base::ByteWriter& out) const;
    static Result<MapRequest> decode(std::string_view body);
};

// Part of a region: where it lies in the target's memory and in the file.
struct MapPiece {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t offset = 0;
    uint32_t file = 0;  // index among the descriptors that came along
    bool operator==(const MapPiece&) const = default;
};

// `reason` says why a region, or a part of it, cannot be mapped; empty where the pieces are all of
// it. Entries without pieces also come unasked, when a region that had some is deregistered.
struct MapReply {
    struct Region {
        uint64_t id = 0;
        uint32_t generation = 0;
        std::string reason;
        std::vector<MapPiece> pieces;  // by address, not overlapping
    };
    uint32_t files = 0;   // descriptors that come along
    bool answers = true;  // the request is answered; else unasked
    std::vector<Region> regions;
    void encode(base::ByteWriter& out) const;
    static Result<MapReply> decode(std::string_view body);
};

// How many descriptors come along with an answer, without looking at the rest of it.
size_t mapReplyFiles(std::string_view body);

}  // namespace nixl::peer
