// The table of a peer's mapped regions, with files of this process in the peer's place.
#include "lanes/host/maps.h"

#include <cstring>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace nixl::peer {
namespace {

constexpr size_t kPage = 4096;

base::Fd memoryFile(size_t pages, int seals = F_SEAL_SHRINK) {
    base::Fd fd(memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    EXPECT_EQ(posix_fallocate(fd.get(), 0, static_cast<off_t>(pages * kPage)), 0);
    EXPECT_EQ(seals != 0 ? fcntl(fd.get(), F_ADD_SEALS, seals) : 0, 0);
    return fd;
}

std::vector<MapRequest::Region> next(HostMaps& maps) {
    Grant grant;
    return maps.nextRequest(Grants(Key{1}), grant);
}

// The answer for region 1, and what became of it.
RegionMapPtr answered(HostMaps& maps,
                      std::vector<MapPiece> pieces,
                      const std::vector<base::Fd>& files,
                      std::string reason = {}) {
    RegionMapPtr region = maps.want(1, 1);
    EXPECT_EQ(next(maps).size(), 1U);
    MapReply reply;
    reply.files = static_cast<uint32_t>(files.size());
    reply.regions.push_back({1, 1, std::move(reason), std::move(pieces)});
    EXPECT_TRUE(maps.take(reply, files).ok());
    return region;
}

TEST(HostMaps, PiecesLieWhereTheFileSays) {
    HostMaps maps;
    std::vector<base::Fd> files;
    files.push_back(memoryFile(4));
    const auto region = answered(maps, {{0x10000, kPage, 0, 0}, {0x20000, 2 * kPage, 2 * kPage, 0}},
                                 files, "a gap");
    const MappedRegionPtr mapped = region->mapped();
    ASSERT_NE(mapped, nullptr);
    EXPECT_FALSE(region->whole());
    EXPECT_EQ(region->reason(), "a gap");
    uint64_t room = 0;
    char* const at = mapped->find(0x20000 + 5, room);
    ASSERT_NE(at, nullptr);
    EXPECT_EQ(room, 2 * kPage - 5);
    *at = 'x';
    char byte = 0;
    ASSERT_EQ(pread(files[0].get(), &byte, 1, 2 * kPage + 5), 1);
    EXPECT_EQ(byte, 'x');
    EXPECT_EQ(mapped->find(0x10000 + kPage, room), nullptr);
    EXPECT_EQ(room, 0x20000 - 0x10000 - kPage) << "up to the next piece";
    EXPECT_EQ(mapped->find(0x20000 + 2 * kPage, room), nullptr);
    EXPECT_EQ(mapped->find(0, room), nullptr);
    EXPECT_EQ(room, 0x10000U);
    EXPECT_EQ(maps.files(), 1U);
}

TEST(HostMaps, WhatCouldKillUsIsNotMapped) {
    const auto reason = [](base::Fd file, MapPiece piece) {
        HostMaps maps;
        std::vector<base::Fd> files;
        files.push_back(std::move(file));
        const auto region = answered(maps, {piece}, files);
        EXPECT_EQ(region->mapped(), nullptr);
        EXPECT_EQ(maps.files(), 0U);
        return region->reason();
    };
    const MapPiece good{0x10000, kPage, 0, 0};
    EXPECT_NE(reason(memoryFile(1, 0), good).find("F_SEAL_SHRINK"), std::string::npos);
    EXPECT_NE(reason(memoryFile(1), {0x10000, kPage, kPage, 0}).find("more of a file"),
              std::string::npos);
    EXPECT_NE(reason(memoryFile(1), {0x10000, 2 * kPage, 0, 0}).find("more of a file"),
              std::string::npos);
    EXPECT_NE(reason(memoryFile(1, F_SEAL_SHRINK | F_SEAL_WRITE), good).find("against writing"),
              std::string::npos);
    EXPECT_NE(reason(base::Fd(open("/dev/null", O_RDWR | O_CLOEXEC)), good).find("no memory file"),
              std::string::npos);
    base::Fd sparse(memfd_create("sparse", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(ftruncate(sparse.get(), kPage), 0);
    ASSERT_EQ(fcntl(sparse.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    EXPECT_NE(reason(std::move(sparse), good).find("holes"), std::string::npos);
}

TEST(HostMaps, HugePagesAreNotMapped) {
    constexpr size_t kHuge = 2 << 20;
    base::Fd huge(memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
    if (!huge || ftruncate(huge.get(), kHuge) != 0) {
        GTEST_SKIP() << "no memory files of huge pages here: " << std::strerror(errno);
    }
    ASSERT_EQ(fcntl(huge.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    HostMaps maps;
    std::vector<base::Fd> files;
    files.push_back(std::move(huge));
    const auto region = answered(maps, {{0x10000, kPage, 0, 0}}, files);
    EXPECT_EQ(region->mapped(), nullptr);
    EXPECT_NE(region->reason().find("huge pages"), std::string::npos) << region->reason();
}

TEST(HostMaps, LetsGoWithTheRegionAndWithTheSession) {
    HostMaps maps;
    std::vector<base::Fd> files;
    files.push_back(memoryFile(1));
    const auto region = answered(maps, {{0x10000, kPage, 0, 0}}, files);
    EXPECT_TRUE(region->whole());
    MapReply gone;
    gone.answers = false;
    gone.regions.push_back({1, 1, "deregistered", {}});
    ASSERT_TRUE(maps.take(gone, {}).ok());
    EXPECT_EQ(region->mapped(), nullptr);
    EXPECT_FALSE(region->whole());
    EXPECT_EQ(maps.files(), 0U);
    const auto again = answered(maps, {{0x10000, kPage, 0, 0}}, files);
    ASSERT_NE(again->mapped(), nullptr);
    maps.sessionLost();
    EXPECT_EQ(again->mapped(), nullptr);
    EXPECT_EQ(maps.files(), 0U);
    // What a transfer still refers to is asked for when the session is back.
    EXPECT_TRUE(again->pending());
    EXPECT_EQ(next(maps).size(), 1U);
}

TEST(HostMaps, OneRequestAtATimeAndNoAnswerWithoutOne) {
    HostMaps maps;
    std::vector<RegionMapPtr> all;
    for (uint64_t id = 1; id <= kMaxMapRegions + 3; ++id) {
        all.push_back(maps.want(id, 1));
    }
    EXPECT_EQ(next(maps).size(), kMaxMapRegions);
    EXPECT_TRUE(next(maps).empty()) << "an answer is awaited";
    maps.connectionLost();  // it will not come
    EXPECT_EQ(next(maps).size(), kMaxMapRegions);
    ASSERT_TRUE(maps.take({}, {}).ok());
    EXPECT_EQ(next(maps).size(), 3U);
    ASSERT_TRUE(maps.take({}, {}).ok());
    EXPECT_EQ(maps.take({}, {}).code(), ErrorCode::INVALID_PARAM);
}

TEST(HostMaps, ARequestIsOfOneGrant) {
    HostMaps maps;
    const std::vector<uint64_t> first = {1, 2};
    const std::vector<uint64_t> second = {3};
    Grants grants(Key{1}, first);
    grants.add(Key{2}, second);
    std::vector<RegionMapPtr> all;
    for (const uint64_t id : {1, 2, 3}) {
        all.push_back(maps.want(id, 1));
    }
    Grant grant;
    EXPECT_EQ(maps.nextRequest(grants, grant).size(), 1U);
    EXPECT_EQ(grant.key, Key{2});
    ASSERT_TRUE(maps.take({}, {}).ok());
    EXPECT_EQ(maps.nextRequest(grants, grant).size(), 2U);
    EXPECT_EQ(grant.key, Key{1});
}

TEST(HostMaps, LimitsAndGenerations) {
    HostMaps maps;
    const auto old = maps.want(1, 1);
    const auto anew = maps.want(1, 2);
    EXPECT_NE(old, anew);
    const auto asked = next(maps);
    ASSERT_EQ(asked.size(), 1U) << "the old generation is not asked for";
    EXPECT_EQ(asked[0].generation, 2U);
    EXPECT_FALSE(old->pending());
    for (uint64_t id = 2; id <= HostMaps::kMaxRegions; ++id) {
        ASSERT_NE(maps.want(id, 1), nullptr);
    }
    EXPECT_EQ(maps.want(HostMaps::kMaxRegions + 1, 1), nullptr);
}

TEST(HostMaps, RefusedIsAskedAgainLater) {
    HostMaps maps;
    const auto region = answered(maps, {}, {}, "has holes");
    EXPECT_FALSE(region->pending());
    EXPECT_EQ(maps.want(1, 1), region);
    EXPECT_FALSE(region->pending()) << "not at once";
    // sleeps: it is this time that must pass
    std::this_thread::sleep_for(HostMaps::kAskAgain + std::chrono::milliseconds(10));
    EXPECT_EQ(maps.want(1, 1), region);
    EXPECT_TRUE(region->pending());
}

}  // namespace
}  // namespace nixl::peer
