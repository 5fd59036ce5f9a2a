// The frames of shared mappings: what is written is read, and everything else is refused.
#include "lanes/host/map_wire.h"

#include <gtest/gtest.h>

namespace nixl::peer {
namespace {

template <typename Frame>
std::string encoded(const Frame& frame) {
    base::ByteWriter out;
    frame.encode(out);
    return out.take();
}

MapReply sample() {
    MapReply reply;
    reply.files = 2;
    reply.regions.resize(2);
    reply.regions[0] = {7, 3, "", {{0x7000, 0x1000, 0, 0}, {0x9000, 0x2000, 1 << 20, 1}}};
    reply.regions[1] = {UINT32_MAX, UINT32_MAX, "memory is not shareable", {}};
    return reply;
}

TEST(MapWire, RequestComesBackAndEveryCutIsRefused) {
    MapRequest request;
    request.grant.grant = 99;
    request.grant.proof[5] = 4;
    request.regions = {{1, 2}, {1'000'000, UINT32_MAX}};
    const std::string bytes = encoded(request);
    auto back = MapRequest::decode(bytes);
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_EQ(back.value().grant.grant, 99U);
    EXPECT_EQ(back.value().grant.proof, request.grant.proof);
    ASSERT_EQ(back.value().regions.size(), 2U);
    EXPECT_EQ(back.value().regions[1].id, 1'000'000U);
    EXPECT_EQ(back.value().regions[1].generation, UINT32_MAX);
    for (size_t size = 0; size < bytes.size(); ++size) {
        EXPECT_FALSE(MapRequest::decode(std::string_view(bytes).substr(0, size)).ok()) << size;
    }
    EXPECT_FALSE(MapRequest::decode(bytes + '\0').ok());
    request.regions.clear();
    EXPECT_FALSE(MapRequest::decode(encoded(request)).ok());
    request.regions.resize(kMaxMapRegions + 1);
    EXPECT_FALSE(MapRequest::decode(encoded(request)).ok());
}

TEST(MapWire, ReplyComesBackAndEveryCutIsRefused) {
    const MapReply reply = sample();
    const std::string bytes = encoded(reply);
    auto back = MapReply::decode(bytes);
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_TRUE(back.value().answers);
    EXPECT_EQ(back.value().files, 2U);
    ASSERT_EQ(back.value().regions.size(), 2U);
    EXPECT_EQ(back.value().regions[0].pieces, reply.regions[0].pieces);
    EXPECT_EQ(back.value().regions[1].reason, "memory is not shareable");
    EXPECT_EQ(mapReplyFiles(bytes), 2U);
    for (size_t size = 0; size < bytes.size(); ++size) {
        EXPECT_FALSE(MapReply::decode(std::string_view(bytes).substr(0, size)).ok()) << size;
    }
    EXPECT_FALSE(MapReply::decode(bytes + '\0').ok());
}

TEST(MapWire, PiecesThatCannotBeAreRefused) {
    const auto refused = [](MapPiece first, MapPiece second) {
        MapReply reply = sample();
        reply.regions[0].pieces = {first, second};
        return !MapReply::decode(encoded(reply)).ok();
    };
    EXPECT_FALSE(refused({0x1000, 0x1000, 0, 0}, {0x2000, 1, 0, 1}));
    EXPECT_TRUE(refused({0x1000, 0x1000, 0, 0}, {0x1fff, 1, 0, 1})) << "overlap";
    EXPECT_TRUE(refused({0x1000, 0, 0, 0}, {0x2000, 1, 0, 1})) << "empty";
    EXPECT_TRUE(refused({0x1000, 1, 0, 0}, {UINT64_MAX, 2, 0, 1})) << "past the end of addresses";
    EXPECT_TRUE(refused({0x1000, 2, UINT64_MAX, 0}, {0x2000, 1, 0, 1})) << "past the end of files";
    EXPECT_TRUE(refused({0x1000, 1, 0, 2}, {0x2000, 1, 0, 1})) << "a file that did not come";
}

TEST(MapWire, ReasonsAreShownWithoutControlCharacters) {
    MapReply reply = sample();
    reply.regions[1].reason = "a\x1b[31mb";
    EXPECT_EQ(MapReply::decode(encoded(reply)).value().regions[1].reason, "a?[31mb");
}

}  // namespace
}  // namespace nixl::peer
