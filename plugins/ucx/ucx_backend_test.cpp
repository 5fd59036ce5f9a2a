// Backend UCX through agents of one process: bytes, notifications, errors.
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "nixl/agent.h"
#include "nixl/plugin.h"

#include "backend/plugins.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

AgentConfig withUcx() {
    EXPECT_TRUE(backend::PluginRegistry::instance().add(*nixlPluginTable()).ok());
    AgentConfig config;
    config.backends = {"UCX"};
    return config;
}

class UcxBackendTest : public testing::Test {
  protected:
    UcxBackendTest() {
        for (size_t i = 0; i < source_.size(); ++i) {
            source_[i] = static_cast<char>(i * 7 + i / 251);
        }
        a_.registerMemory(RegistrationList{{source_.data(), source_.size()}}, {});
        b_.registerMemory(RegistrationList{{target_.data(), target_.size()}}, {});
        EXPECT_EQ(a_.addPeer(b_.metadata()), "b");
    }
    // `size` bytes at `offset` of each side.
    TransferHandle prepare(OpType op, uint64_t offset, uint64_t size) {
        return a_.prepareTransfer(op, DescriptorList{{source_.data() + offset, size}},
                                  DescriptorList{{target_.data() + offset, size}}, "b");
    }

    std::vector<char> source_ = std::vector<char>(64 << 20);
    std::vector<char> target_ = std::vector<char>(64 << 20);
    Agent a_{"a", withUcx()};
    Agent b_{"b", withUcx()};
};

TEST_F(UcxBackendTest, WritesAndReadsOfEverySize) {
    for (const uint64_t size : {1UL, 63UL, 4096UL, 65'537UL, 1UL << 20, 64UL << 20}) {
        std::memset(target_.data(), 0, size);
        TransferHandle write = prepare(OpType::WRITE, 0, size);
        a_.postTransfer(write, "done");
        EXPECT_EQ(a_.waitTransfer(write), XferState::DONE);
        EXPECT_EQ(std::memcmp(source_.data(), target_.data(), size), 0) << size;
        const auto notes = b_.takeNotifications();
        ASSERT_EQ(notes.size(), 1U);
        EXPECT_EQ(notes[0].from, "a");
        EXPECT_EQ(notes[0].message, "done");
        std::memset(source_.data(), 0x55, size);
        TransferHandle read = prepare(OpType::READ, 0, size);
        a_.postTransfer(read);
        EXPECT_EQ(a_.waitTransfer(read), XferState::DONE);
        EXPECT_EQ(std::memcmp(source_.data(), target_.data(), size), 0) << size;
    }
}

TEST_F(UcxBackendTest, DeregisteredTargetIsRefused) {
    TransferHandle write = prepare(OpType::WRITE, 0, 4096);
    b_.deregisterMemory(RegistrationList{{target_.data(), target_.size()}}, {});
    try {
        a_.postTransfer(write);
        FAIL() << "posted to deregistered memory";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::NOT_FOUND) << error.what();
    }
}

TEST_F(UcxBackendTest, HandlesAfterReleaseAndOfOthersAreErrors) {
    TransferHandle write = prepare(OpType::WRITE, 0, 4096);
    const HandleId id = write.id();
    EXPECT_THROW(b_.postTransfer(id), Error);
    a_.releaseTransfer(write);
    a_.releaseTransfer(write);
    EXPECT_THROW(a_.checkTransfer(id), Error);
}

TEST_F(UcxBackendTest, ExplainsTheLane) {
    TransferHandle write = prepare(OpType::WRITE, 0, 4096);
    const TransferExplanation how = a_.explainTransfer(write.id());
    EXPECT_EQ(how.backend, "UCX");
    EXPECT_EQ(how.lane, "local");
    EXPECT_EQ(how.segments, 1U);
}

TEST_F(UcxBackendTest, AnswersASenderNeverAdded) {
    a_.sendNotification("b", "ping");
    ASSERT_EQ(b_.takeNotifications().size(), 1U);
    b_.sendNotification("a", "pong");
    const auto notes = a_.takeNotifications();
    ASSERT_EQ(notes.size(), 1U);
    EXPECT_EQ(notes[0].message, "pong");
}

TEST_F(UcxBackendTest, NotificationsNobodyTakesReachALimit) {
    const std::string large(1 << 20, 'x');
    int sent = 0;
    try {
        for (; sent < 1000; ++sent) {
            a_.sendNotification("b", large);
        }
        FAIL() << "no limit was reached";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::NOT_ALLOWED) << error.what();
    }
    EXPECT_EQ(b_.takeNotifications().size(), static_cast<size_t>(sent));
    a_.sendNotification("b", large);
    EXPECT_EQ(b_.takeNotifications().size(), 1U);
}

TEST_F(UcxBackendTest, UnknownLaneIsNamed) {
    Agent plain("plain");
    try {
        plain.createBackend("UCX", {{"lanes", "warp"}});
        FAIL() << "a lane that does not exist was taken";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("warp"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace nixl
