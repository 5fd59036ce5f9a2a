// Memory stays flat over many rounds of create, post and release, and of register and deregister.
// NIXL_SOAK=50 makes a million rounds of the first.
#include <gtest/gtest.h>

#include "support.h"

namespace nixl::crosstest {
namespace {

constexpr uint64_t kAllowed = 2 << 20;  // bytes; one leaked 128-byte object a round would be 2.5 M

class RoundsTest : public testing::TestWithParam<const char*> {};

TEST_P(RoundsTest, CreatePostRelease) {
    Agent agent("rounds", configFor(GetParam()));
    Loop loop(agent, 128);
    const uint64_t count = rounds(20'000);
    uint64_t warm = 0;
    for (uint64_t i = 0; i < count; ++i) {
        TransferHandle handle = loop.prepare();
        if (agent.postTransfer(handle) == XferState::PENDING) {
            agent.waitTransfer(handle);
        }
        agent.releaseTransfer(handle);
        if (i == count / 10) {
            warm = residentBytes();
        }
    }
    EXPECT_TRUE(loop.moved());
    EXPECT_LE(residentBytes(), warm + kAllowed);
    EXPECT_EQ(agent.stats().at("posts"), count);
}

TEST_P(RoundsTest, PreparedListsByIndex) {
    Agent agent("rounds", configFor(GetParam()));
    Loop loop(agent, 1 << 16);
    DescriptorList near;
    DescriptorList far;
    near.appendRun({loop.first.at(0).address, 64, 0, 128, 256});
    far.appendRun({loop.second.at(0).address, 64, 0, 64, 256});
    const PreparedList local = agent.prepareList("", near);
    const PreparedList remote = agent.prepareList("rounds", far);
    const std::vector<int32_t> left = {5, 0, 255, 17};
    const std::vector<int32_t> right = {0, 1, 2, 200};
    const uint64_t count = rounds(5'000);
    uint64_t warm = 0;
    for (uint64_t i = 0; i < count; ++i) {
        TransferHandle handle =
            agent.prepareTransfer(OpType::READ, local.id(), left, remote.id(), right);
        agent.postTransfer(handle, "round");
        agent.waitTransfer(handle);
        agent.takeNotifications();
        if (i == count / 10) {
            warm = residentBytes();
        }
    }
    EXPECT_LE(residentBytes(), warm + kAllowed);
}

TEST_P(RoundsTest, TenThousandRegionsOverAndOver) {
    Agent agent("rounds", configFor(GetParam()));
    std::vector<char> bytes(10'000UL * 64);
    RegistrationList list;
    for (uint64_t i = 0; i < 10'000; ++i) {
        list.append(reinterpret_cast<uint64_t>(bytes.data()) + 64 * i, 48);
    }
    const uint64_t count = rounds(20);
    uint64_t warm = 0;
    for (uint64_t i = 0; i < count; ++i) {
        agent.registerMemory(list, {});
        EXPECT_EQ(agent.stats().at("regions"), 10'000U);
        agent.deregisterMemory(list, {});
        EXPECT_EQ(agent.stats().at("regions"), 0U);
        if (i == count / 4) {
            warm = residentBytes();
        }
    }
    EXPECT_LE(residentBytes(), warm + 2 * kAllowed);
}

TEST_P(RoundsTest, AgentsComeAndGo) {
    const auto once = [] {
        Agent agent("rounds", configFor(GetParam()));
        Agent other("other", configFor(GetParam()));
        Loop loop(agent, 4 << 20);
        other.addPeer(agent.metadata());
        TransferHandle handle = loop.prepare();
        agent.postTransfer(handle);
        EXPECT_EQ(agent.waitTransfer(handle), XferState::DONE);
    };
    once();
    once();
    const int descriptors = openDescriptors();
    const int threads = threadCount();
    const uint64_t before = residentBytes();
    for (uint64_t i = 0; i < rounds(30); ++i) {
        once();
    }
    EXPECT_EQ(openDescriptors(), descriptors);
    EXPECT_TRUE(threadsEnd(threads)) << threadCount() << " threads, not " << threads;
    EXPECT_LE(residentBytes(), before + 4 * kAllowed);
}

INSTANTIATE_TEST_SUITE_P(Over, RoundsTest, testing::Values("MEMORY", "UCX"), [](const auto& info) {
    return std::string(info.param);
});

}  // namespace
}  // namespace nixl::crosstest
