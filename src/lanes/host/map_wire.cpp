// See map_wire.h.
#include "lanes/host/map_wire.h"

#include <algorithm>

namespace nixl::peer {

namespace {

// Region ids and generations of both frames.
template <typename Region>
void readRegion(base::ByteReader& in, Region& region) {
    region.id = in.varint();
    const uint64_t generation = in.varint();
    if (generation > UINT32_MAX) {
        in.fail();
    }
    region.generation = static_cast<uint32_t>(generation);
}

// Pieces in order of their addresses, inside the 64-bit space, of files that came along.
bool readPieces(base::ByteReader& in, uint64_t count, uint32_t files, MapReply::Region& region) {
    uint64_t end = 0;
    for (uint64_t i = 0; i < count && in.ok(); ++i) {
        MapPiece piece;
        piece.address = in.varint();
        piece.size = in.varint();
        piece.offset = in.varint();
        const uint64_t file = in.varint();
        if (piece.address < end || piece.size == 0 || piece.size > UINT64_MAX - piece.address ||
            piece.size > UINT64_MAX - piece.offset || file >= files) {
            return false;
        }
        piece.file = static_cast<uint32_t>(file);
        end = piece.address + piece.size;
        region.pieces.push_back(piece);
    }
    return in.ok();
}

}  // namespace

void MapRequest::encode(base::ByteWriter& out) const {
    grant.encode(out);
    out.varint(regions.size());
    for (const Region& region : regions) {
        out.varint(region.id);
        out.varint(region.generation);
    }
}

Result<MapRequest> MapRequest::decode(std::string_view body) {
    constexpr size_t kProof = sizeof(GrantId) + sizeof(base::Digest);
    auto grant = GrantProof::decode(body.substr(0, kProof));
    base::ByteReader in(body.substr(std::min(body.size(), kProof)));
    MapRequest request;
    const uint64_t count = in.varint();
    if (!grant.ok() || !in.ok() || count == 0 || count > kMaxMapRegions) {
        return Status::invalidParam("malformed MAP_REQUEST frame");
    }
    request.grant = grant.value();
    request.regions.resize(count);
    for (Region& region : request.regions) {
        readRegion(in, region);
    }
    if (!in.ok() || !in.atEnd()) {
        return Status::invalidParam("malformed MAP_REQUEST frame");
    }
    return request;
}

void MapReply::encode(base::ByteWriter& out) const {
    out.fixed(static_cast<uint8_t>(answers ? 1 : 0));
    out.varint(files);
    out.varint(regions.size());
    for (const Region& region : regions) {
        out.varint(region.id);
        out.varint(region.generation);
        out.text(std::string_view(region.reason).substr(0, kMaxMapReason));
        out.varint(region.pieces.size());
        for (const MapPiece& piece : region.pieces) {
            out.varint(piece.address);
            out.varint(piece.size);
            out.varint(piece.offset);
            out.varint(piece.file);
        }
    }
}

Result<MapReply> MapReply::decode(std::string_view body) {
    base::ByteReader in(body);
    MapReply reply;
    const auto answers = in.fixed<uint8_t>();
    const uint64_t files = in.varint();
    const uint64_t count = in.varint();
    bool good = in.ok() && answers <= 1 && files <= kMaxMapFiles && count <= kMaxMapRegions;
    reply.answers = answers == 1;
    reply.files = good ? static_cast<uint32_t>(files) : 0;
    for (uint64_t i = 0; good && i < count; ++i) {
        Region region;
        readRegion(in, region);
        for (const char c : in.text()) {  // it will be shown to people
            region.reason += c >= ' ' && c != '\x7f' ? c : '?';
        }
        const uint64_t pieces = in.varint();
        good = in.ok() && pieces <= kMaxMapPieces && region.reason.size() <= kMaxMapReason &&
               readPieces(in, pieces, reply.files, region);
        reply.regions.push_back(std::move(region));
    }
    if (!good || !in.atEnd()) {
        return Status::invalidParam("malformed MAP_REPLY frame");
    }
    return reply;
}

size_t mapReplyFiles(std::string_view body) {
    base::ByteReader in(body);
    in.fixed<uint8_t>();
    const uint64_t files = in.varint();
    return files <= kMaxMapFiles ? files : 0;
}

}  // namespace nixl::peer
