// What backend MOONCAKE says and does when its library is missing, old or another one, and when the
// engine refuses: over the stand-in, since the real engine does none of it when asked.
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nixl/agent.h"
#include "nixl/plugin.h"

#include "backend/plugins.h"
#include "testing/until.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::chrono::seconds kPatience{60};

class MooncakeFailures : public ::testing::Test {
  protected:
    void SetUp() override {
        const Status added = backend::PluginRegistry::instance().add(*nixlPluginTable());
        ASSERT_TRUE(added.ok()) << added.message();
        setenv("NIXL_MOONCAKE_LIBRARY", NIXL_MOONCAKE_STANDIN, 1);
    }
    void TearDown() override {
        for (const char* name : {"NIXL_MOONCAKE_LIBRARY", "NIXL_MOONCAKE_STANDIN",
                                 "NIXL_RDMA_DEVICES", "MC_TCP_PROTO"}) {
            unsetenv(name);
        }
    }

    static AgentConfig config(const std::map<std::string, std::string>& more = {}) {
        AgentConfig config;
        config.backends = {"MOONCAKE"};
        config.backendParams["MOONCAKE"] = {
            {"lanes", "mooncake"}, {"protocol", "tcp"}, {"local_hostname", "127.0.0.1"}};
        for (const auto& [name, value] : more) {
            config.backendParams["MOONCAKE"][name] = value;
        }
        return config;
    }
    // What the making of an agent says.
    static std::string refusal(const std::map<std::string, std::string>& more = {}) {
        try {
            const Agent agent("mooncake-refused", config(more));
        } catch (const Error& error) {
            return error.what();
        }
        return "none";
    }
    void start() {
        near_ = std::make_unique<Agent>("mooncake-near", config());
        far_ = std::make_unique<Agent>("mooncake-far", config());
        near_->registerMemory(RegistrationList{{here_.data(), here_.size()}}, {});
        far_->registerMemory(RegistrationList{{there_.data(), there_.size()}}, {});
        near_->addPeer(far_->metadata());
    }
    TransferHandle prepare(OpType op, const std::vector<uint64_t>& sizes) {
        DescriptorList local;
        DescriptorList remote;
        for (size_t i = 0; i < sizes.size(); ++i) {
            local.append(reinterpret_cast<uint64_t>(here_.data()) + i * 2048, sizes[i]);
            remote.append(reinterpret_cast<uint64_t>(there_.data()) + i * 4096, sizes[i]);
        }
        return near_->prepareTransfer(op, local, remote, "mooncake-far");
    }
    bool moves(OpType op, const std::vector<uint64_t>& sizes) {
        TransferHandle handle = prepare(op, sizes);
        near_->postTransfer(handle);
        return near_->waitTransfer(handle, kPatience) == XferState::DONE;
    }

    std::vector<char> here_ = std::vector<char>(65536, 1);
    std::vector<char> there_ = std::vector<char>(65536, 2);
    std::unique_ptr<Agent> near_;
    std::unique_ptr<Agent> far_;
};

TEST_F(MooncakeFailures, TheLibraryIsMissing) {
    setenv("NIXL_MOONCAKE_LIBRARY", "/nonexistent/libtransfer_engine.so", 1);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("NOT_FOUND"), HasSubstr("/nonexistent"),
                                 HasSubstr("NIXL_MOONCAKE_LIBRARY")));
    setenv("NIXL_MOONCAKE_LIBRARY", "/nonexistent", 1);
    EXPECT_THAT(refusal(), HasSubstr("/nonexistent"));
    EXPECT_EQ(refusal({{"lanes", "stream"}}), "none") << "nothing of it was asked for";
}

TEST_F(MooncakeFailures, TheLibraryIsAnotherOne) {
    setenv("NIXL_MOONCAKE_LIBRARY", "libm.so.6", 1);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("MISMATCH"), HasSubstr("libm.so.6"),
                                 HasSubstr("it has no createTransferEngine")));
}

TEST_F(MooncakeFailures, TheLibraryIsTooOld) {
    setenv("NIXL_MOONCAKE_LIBRARY", NIXL_MOONCAKE_OLD, 1);
    EXPECT_THAT(refusal(),
                AllOf(HasSubstr("MISMATCH"), HasSubstr("too old"), HasSubstr("tcp_proto_version")));
}

TEST_F(MooncakeFailures, TheLibraryHasAnotherLayout) {
    setenv("NIXL_MOONCAKE_STANDIN", "shift", 1);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("MISMATCH"), HasSubstr(NIXL_MOONCAKE_STANDIN),
                                 HasSubstr("another ABI")));
}

TEST_F(MooncakeFailures, TransportsAndDevicesThatAreNotThere) {
    const std::filesystem::path folder =
        std::filesystem::path(::testing::TempDir()) / ("rdma" + std::to_string(getpid()));
    std::filesystem::create_directories(folder);
    setenv("NIXL_RDMA_DEVICES", folder.c_str(), 1);
    EXPECT_THAT(refusal({{"protocol", "rdma"}}), HasSubstr("no RDMA device"));
    EXPECT_THAT(refusal({{"protocol", "ib"}}),
                AllOf(HasSubstr("protocol=\"ib\""), HasSubstr("auto"), HasSubstr("tcp"),
                      HasSubstr("rdma")));
    std::filesystem::create_directories(folder / "mlx5_0");
    std::filesystem::create_directories(folder / "mlx5_1");
    EXPECT_THAT(refusal({{"protocol", "rdma"}, {"device_name", "mlx5_1,mlx5_7"}}),
                AllOf(HasSubstr("device_name=\"mlx5_7\""), HasSubstr("mlx5_0, mlx5_1")));
    EXPECT_THAT(refusal({{"protocol", "rdma"}}), HasSubstr("no working transport \"rdma\""));
    std::filesystem::remove_all(folder);
    setenv("MC_TCP_PROTO", "1", 1);
    EXPECT_THAT(refusal(), HasSubstr("MC_TCP_PROTO=1"));
}

// The real engine throws where somebody has taken the port that it found free.
TEST_F(MooncakeFailures, PortsThatAreTakenMeanwhile) {
    setenv("NIXL_MOONCAKE_STANDIN", "no-port", 1);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("local_hostname \"127.0.0.1\""),
                                 HasSubstr("Address already in use")));
    setenv("NIXL_MOONCAKE_STANDIN", "port-taken", 1);
    start();
    EXPECT_TRUE(moves(OpType::WRITE, {100, 200}));
}

TEST_F(MooncakeFailures, MemoryThatTheEngineRefuses) {
    setenv("NIXL_MOONCAKE_STANDIN", "refuse-memory", 1);
    start();
    std::vector<char> memory(666);
    try {
        near_->registerMemory(RegistrationList{{memory.data(), memory.size()}}, {});
        FAIL() << "it was registered";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::BACKEND);
        EXPECT_THAT(error.what(), AllOf(HasSubstr("666 bytes"), HasSubstr("-1, invalid argument")));
    }
    EXPECT_TRUE(moves(OpType::WRITE, {100, 200}));
}

// Of a refused batch some requests may have been begun: only the engine's end tells that they are
// over.
TEST_F(MooncakeFailures, ARefusedBatchFailsAloneAndAnotherEngineGoesOn) {
    setenv("NIXL_MOONCAKE_STANDIN", "refuse-batch", 1);
    start();
    EXPECT_TRUE(moves(OpType::WRITE, {100, 200}));
    TransferHandle three = prepare(OpType::WRITE, {10, 20, 30});
    near_->postTransfer(three);
    EXPECT_THROW(near_->waitTransfer(three, kPatience), Error);
    EXPECT_THAT(near_->transferError(three.id()).message(),
                AllOf(HasSubstr("mooncake-far"), HasSubstr("refused 3 requests")));
    EXPECT_TRUE(moves(OpType::READ, {100, 200}));
    EXPECT_EQ(here_[0], 1);
    near_->releaseTransfer(three);
    near_->deregisterMemory(RegistrationList{{here_.data(), here_.size()}}, {});
}

// The engine keeps a request for ever: its user is told, and gets the memory by the engine's end.
// What others have under way begins again.
TEST_F(MooncakeFailures, ARequestThatNeverEnds) {
    setenv("NIXL_MOONCAKE_STANDIN", "hold", 1);
    start();
    TransferHandle held = prepare(OpType::READ, {777});
    near_->postTransfer(held);
    EXPECT_TRUE(moves(OpType::WRITE, {100, 200}));
    EXPECT_EQ(near_->checkTransfer(held), XferState::PENDING);
    near_->cancelTransfer(held.id());
    EXPECT_EQ(near_->transferState(held.id()), XferState::CANCELED);
    EXPECT_THAT(near_->transferError(held.id()).message(), HasSubstr("remote_unconfirmed"));
    near_->releaseTransfer(held);
    near_->deregisterMemory(RegistrationList{{here_.data(), here_.size()}}, {});
    near_->registerMemory(RegistrationList{{here_.data(), here_.size()}}, {});
    EXPECT_TRUE(moves(OpType::WRITE, {100, 200}));
    near_.reset();
}

TEST_F(MooncakeFailures, AnAgentEndsWithARequestThatNeverEnds) {
    setenv("NIXL_MOONCAKE_STANDIN", "hold", 1);
    start();
    TransferHandle held = prepare(OpType::READ, {777});
    near_->postTransfer(held);
    const auto began = std::chrono::steady_clock::now();
    near_.reset();
    EXPECT_LT(std::chrono::steady_clock::now() - began, kPatience);
}

TEST_F(MooncakeFailures, WhatPeersSendIsChecked) {
    start();
    std::string metadata = far_->metadata();
    const size_t at = metadata.find("mooncake1 tcp ");
    ASSERT_NE(at, std::string::npos);
    metadata.replace(at, 9, "moonbeam1");
    near_->removePeer("mooncake-far");
    EXPECT_THROW(near_->addPeer(metadata), Error);
    near_->addPeer(far_->metadata());
    EXPECT_TRUE(moves(OpType::WRITE, {100}));
}

}  // namespace
}  // namespace nixl
