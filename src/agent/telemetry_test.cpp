// What an agent tells of its transfers (Agent::telemetry(), stats(), dumpState()) when they end,
// fail, are canceled and are refused.
#include <array>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nixl/agent.h"

#include "backend/plugins.h"
#include "testing/memory_backend.h"

namespace nixl {
namespace {

using testing::HasSubstr;

class AgentTelemetryTest : public testing::Test {
  protected:
    AgentTelemetryTest() {
        EXPECT_TRUE(backend::PluginRegistry::instance().add(testkit::memoryBackendTable()).ok());
        for (Agent* const agent : {&near_, &far_}) {
            // A copy of more than 64 bytes waits for progress(), so it can be looked at.
            agent->createBackend("MEMORY", {{"inline_limit", "64"}, {"manual", "true"}});
        }
        mine_ = near_.registerMemory({{bytes_.data(), bytes_.size()}});
        theirs_ = far_.registerMemory({{other_.data(), other_.size()}});
        near_.addPeer(far_.metadata());
    }
    TransferHandle prepare(uint64_t size, OpType op = OpType::WRITE) {
        DescriptorList local(MemType::DRAM);
        DescriptorList remote(MemType::DRAM);
        local.append(reinterpret_cast<uint64_t>(bytes_.data()), size);
        remote.append(reinterpret_cast<uint64_t>(other_.data()), size);
        return near_.prepareTransfer(op, local, remote, "far \"one\"");
    }
    static AgentConfig config() {
        AgentConfig made;
        made.enableProgThread = false;
        return made;
    }

    std::array<char, 4096> bytes_{};
    std::array<char, 4096> other_{};
    Agent near_{"near", config()};
    Agent far_{"far \"one\"", config()};
    RegistrationHandle theirs_;
    RegistrationHandle mine_;
};

TEST_F(AgentTelemetryTest, CountsByPeerAndDirection) {
    TransferHandle write = prepare(64);
    TransferHandle read = prepare(32, OpType::READ);
    for (TransferHandle* const handle : {&write, &write, &read}) {
        near_.postTransfer(*handle);
        near_.waitTransfer(*handle);
    }
    const AgentTelemetry told = near_.telemetry();
    EXPECT_EQ(told.agent, "near");
    EXPECT_EQ(told.peers, 1U);
    EXPECT_EQ(told.prepared, 2U);
    EXPECT_EQ(told.registered.at(MemType::DRAM).regions, 1U);
    EXPECT_EQ(told.registered.at(MemType::DRAM).bytes, 4096U);
    ASSERT_EQ(told.transfers.size(), 2U);
    const TransferCounts& reads = told.transfers[0];
    const TransferCounts& writes = told.transfers[1];
    EXPECT_EQ(reads.op, OpType::READ);
    EXPECT_EQ(reads.bytes, 32U);
    EXPECT_EQ(writes.backend, "MEMORY");
    EXPECT_EQ(writes.peer, "far \"one\"");
    EXPECT_EQ(writes.posts, 2U);
    EXPECT_EQ(writes.done, 2U);
    EXPECT_EQ(writes.bytes, 128U);
    EXPECT_EQ(writes.sizes[0], 2U);
    EXPECT_EQ(near_.stats().at("posts"), 3U);
    EXPECT_EQ(near_.stats().at("bytes"), 160U);
    EXPECT_THAT(near_.telemetryJson(), HasSubstr("\"peer\":\"far \\\"one\\\"\""));
}

TEST_F(AgentTelemetryTest, WhatIsInProgressIsShownWithItsAge) {
    TransferHandle slow = prepare(4096);
    near_.postTransfer(slow);
    AgentTelemetry told = near_.telemetry();
    EXPECT_EQ(told.transfers.at(0).inProgress(), 1U);
    ASSERT_EQ(told.pending.size(), 1U);
    EXPECT_EQ(told.pending[0].id, slow.id());
    EXPECT_EQ(told.pending[0].bytes, 4096U);
    EXPECT_GT(told.pending[0].age.count(), 0);
    EXPECT_THAT(near_.dumpState(), HasSubstr("WRITE with far \"one\" by MEMORY: pending for "));
    near_.waitTransfer(slow);
    told = near_.telemetry();
    EXPECT_TRUE(told.pending.empty());
    EXPECT_EQ(told.transfers.at(0).done, 1U);
    EXPECT_THAT(near_.dumpState(), HasSubstr(": done in "));
}

TEST_F(AgentTelemetryTest, WhatFailsOrIsRefusedIsCountedByItsCode) {
    TransferHandle canceled = prepare(4096);
    near_.postTransfer(canceled);
    near_.cancelTransfer(canceled.id());
    TransferHandle refused = prepare(64);
    mine_ = {};  // deregisters what both use
    EXPECT_THROW(near_.postTransfer(refused), Error);
    const TransferCounts counts = near_.telemetry().transfers.at(0);
    EXPECT_EQ(counts.posts, 1U);
    EXPECT_EQ(counts.canceled, 1U);
    EXPECT_EQ(counts.inProgress(), 0U);
    EXPECT_EQ(counts.errors.at(ErrorCode::CANCELED), 1U);
    EXPECT_EQ(counts.errors.at(ErrorCode::NOT_FOUND), 1U);
    EXPECT_THAT(near_.dumpState(), HasSubstr(": canceled in "));
    EXPECT_EQ(near_.telemetry().registered.at(MemType::DRAM).bytes, 0U);
}

}  // namespace
}  // namespace nixl
