// Lane ucx against the real UCX library, between two agents of this process, over its own
// transports. SKIP where the library is not installed.
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "nixl/agent.h"
#include "nixl/plugin.h"

#include "backend/plugins.h"

#ifdef NIXL_UCX_LANE
#include "ucx_library.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

class UcxLaneTest : public testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        if (const auto library = ucx::openUcx(); !library.ok()) {
            GTEST_SKIP() << library.status().message();
        }
        ASSERT_TRUE(backend::PluginRegistry::instance().add(*nixlPluginTable()).ok());
        AgentConfig config;
        config.backends = {"UCX"};
        config.backendParams["UCX"] = {{"lanes", "ucx"}, {"UCX_TLS", GetParam()}};
        a_ = std::make_unique<Agent>("ucx-a", config);
        b_ = std::make_unique<Agent>("ucx-b", config);
        for (size_t i = 0; i < source_.size(); ++i) {
            source_[i] = static_cast<char>(i * 31 + i / 509);
        }
        a_->registerMemory(RegistrationList{{source_.data(), source_.size()}}, {});
        b_->registerMemory(RegistrationList{{target_.data(), target_.size()}}, {});
        ASSERT_EQ(a_->addPeer(b_->metadata()), "ucx-b");
    }
    TransferHandle prepare(OpType op, uint64_t size) {
        return a_->prepareTransfer(op, DescriptorList{{source_.data(), size}},
                                   DescriptorList{{target_.data(), size}}, "ucx-b");
    }

    std::vector<char> source_ = std::vector<char>(8 << 20);
    std::vector<char> target_ = std::vector<char>(8 << 20);
    std::unique_ptr<Agent> a_;
    std::unique_ptr<Agent> b_;
};

TEST_P(UcxLaneTest, WritesAndReadsOfEverySize) {
    for (const uint64_t size : {1UL, 4096UL, 65'537UL, 8UL << 20}) {
        std::memset(target_.data(), 0, size);
        TransferHandle write = prepare(OpType::WRITE, size);
        EXPECT_EQ(a_->explainTransfer(write.id()).lane, "ucx");
        a_->postTransfer(write, "written");
        ASSERT_EQ(a_->waitTransfer(write, std::chrono::seconds(20)), XferState::DONE);
        EXPECT_EQ(std::memcmp(source_.data(), target_.data(), size), 0) << size;
        ASSERT_TRUE(b_->waitNotifications(std::chrono::seconds(5)));
        EXPECT_EQ(b_->takeNotifications().at(0).message, "written");
        std::memset(source_.data(), 0x2a, size);
        TransferHandle read = prepare(OpType::READ, size);
        a_->postTransfer(read);
        ASSERT_EQ(a_->waitTransfer(read, std::chrono::seconds(20)), XferState::DONE);
        EXPECT_EQ(std::memcmp(source_.data(), target_.data(), size), 0) << size;
    }
}

TEST_P(UcxLaneTest, ScatteredBlocksArriveWhereTheyBelong) {
    DescriptorList local;
    DescriptorList remote;
    constexpr uint64_t kBlocks = 1000;
    for (uint64_t i = 0; i < kBlocks; ++i) {
        local.append(reinterpret_cast<uint64_t>(source_.data()) + i * 8192, 4096);
        remote.append(reinterpret_cast<uint64_t>(target_.data()) + (kBlocks - 1 - i) * 8192, 4096);
    }
    TransferHandle write = a_->prepareTransfer(OpType::WRITE, local, remote, "ucx-b");
    a_->postTransfer(write);
    ASSERT_EQ(a_->waitTransfer(write, std::chrono::seconds(20)), XferState::DONE);
    for (uint64_t i = 0; i < kBlocks; ++i) {
        ASSERT_EQ(
            std::memcmp(source_.data() + i * 8192, target_.data() + (kBlocks - 1 - i) * 8192, 4096),
            0)
            << i;
    }
}

TEST_P(UcxLaneTest, ItsAgentEndsWithWorkInProgress) {
    TransferHandle write = prepare(OpType::WRITE, 8 << 20);
    a_->postTransfer(write);
    a_.reset();
    SUCCEED();
}

INSTANTIATE_TEST_SUITE_P(Transports,
                         UcxLaneTest,
                         testing::Values("tcp", "self,sysv,posix,cma,tcp"));

}  // namespace
}  // namespace nixl
#endif
