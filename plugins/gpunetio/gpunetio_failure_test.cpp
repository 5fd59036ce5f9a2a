// What goes wrong with GPUNETIO, against the stand-ins: parameters, memory, calls of DOCA that
// fail, cancel, memory that is gone at the other side.
#include <gmock/gmock.h>

#include "nixl/agent.h"

#include "backend/plugins.h"
#include "base/log.h"
#include "gpunetio_test_support.h"
#include "testing/until.h"

namespace nixl::gpunetio {
namespace {

using testing::HasSubstr;
using Values = std::map<std::string, std::string>;

constexpr uint64_t kSize = 8 << 20;

class GpunetioFailureTest : public testing::Test {
  protected:
    GpunetioFailureTest() {
        EXPECT_TRUE(backend::PluginRegistry::instance().add(*nixlPluginTable()).ok());
    }
    std::string refusal(const Values& values) {
        Agent agent("refused");
        try {
            agent.createBackend("GPUNETIO", values);
        } catch (const Error& error) {
            return error.what();
        }
        return "none";
    }
    // The text that registering gives.
    std::string registering(Agent& agent, uint64_t address, uint64_t size, uint64_t gpu = 0) {
        RegistrationList list(MemType::VRAM);
        list.append(address, size, gpu);
        try {
            agent.registerMemory(list, {});
        } catch (const Error& error) {
            return error.what();
        }
        return "none";
    }
    AgentConfig config(Values values = {}) {
        AgentConfig made;
        made.backends = {"GPUNETIO"};
        made.backendParams["GPUNETIO"] = std::move(values);
        return made;
    }

    Standins standins_;
};

TEST_F(GpunetioFailureTest, DevicesThatAreNotThereAreNamedWithThoseThatAre) {
    EXPECT_THAT(refusal({{"gpu_devices", "0 7"}}),
                AllOf(HasSubstr("\"7\""), HasSubstr("GPUs here are: 0 1")));
    EXPECT_THAT(refusal({{"gpu_devices", "first"}}), HasSubstr("\"first\""));
    EXPECT_THAT(refusal({{"network_devices", "mlx5_9"}}),
                AllOf(HasSubstr("\"mlx5_9\""), HasSubstr("here are: mlx5_0 mlx5_1")));
    EXPECT_THAT(refusal({{"gid_index", "9"}}),
                AllOf(HasSubstr("mlx5_0"), HasSubstr("gid_index 9")));
    EXPECT_THAT(refusal({{"cuda_streams", "0"}}), HasSubstr("cuda_streams"));
    EXPECT_EQ(refusal({{"gpu_devices", "all"}, {"network_devices", "mlx5_1"}}), "none");
}

std::vector<std::string>& warnings() {
    static std::vector<std::string> lines;
    return lines;
}

TEST_F(GpunetioFailureTest, WhatHasNoEffectIsToldOnce) {
    warnings().clear();
    base::setLogSink([](LogLevel level, std::string_view line) {
        if (level == LogLevel::WARN && line.find("oob_") != std::string_view::npos) {
            warnings().emplace_back(line);
        }
    });
    EXPECT_EQ(refusal({{"gpu_devices", "0"}}), "none");
    EXPECT_EQ(refusal({{"oob_interface", ""}, {"oob_port", ""}}), "none");
    EXPECT_TRUE(warnings().empty());
    EXPECT_EQ(refusal({{"oob_interface", "eth7"}}), "none");
    EXPECT_EQ(refusal({{"oob_interface", "eth7"}, {"oob_port", "9999"}}), "none");
    base::setLogSink(nullptr);
    ASSERT_EQ(warnings().size(), 2U);
    EXPECT_THAT(warnings()[0], HasSubstr("GPUNETIO: oob_interface=\"eth7\" has no effect: "));
    EXPECT_THAT(warnings()[1],
                HasSubstr("oob_interface=\"eth7\", oob_port=\"9999\" have no effect: "));
}

TEST_F(GpunetioFailureTest, ACallThatFailsIsNamed) {
    for (const auto& [call, text] : std::map<std::string, std::string>{
             {"doca_gpu_create", "opening GPU 0 (0000:10:00.0)"},
             {"doca_verbs_bridge_verbs_context_create", "opening adapter mlx5_0"},
             {"doca_verbs_pd_create", "protection domain"}}) {
        setenv("DOCA_STANDIN_FAIL", call.c_str(), 1);
        EXPECT_THAT(refusal({}), AllOf(HasSubstr(text), HasSubstr("stand-in failure"))) << call;
    }
    unsetenv("DOCA_STANDIN_FAIL");
    standins_.gpus.failOnce("cuModuleLoadData", 0, 2);
    EXPECT_THAT(refusal({}), AllOf(HasSubstr("loading the kernel"), HasSubstr("out of memory")));
    standins_.gpus.failOnce("cuStreamCreate", 0, 2);
    EXPECT_THAT(refusal({}), HasSubstr("making a stream"));
}

TEST_F(GpunetioFailureTest, MemoryThatCannotBeRegistered) {
    Agent agent("registers", config({{"gpu_devices", "0"}}));
    const uint64_t memory = standins_.gpus.allocate(kSize);
    const uint64_t other = standins_.gpus.allocate(kSize, 1);
    EXPECT_THAT(registering(agent, other, kSize, 1), HasSubstr("gpu_devices are: 0"));
    EXPECT_NE(registering(agent, memory, kSize + 4096), "none");
    EXPECT_NE(registering(agent, 4096, 4096), "none");
    setenv("DOCA_STANDIN_FAIL", "ibv_reg_mr", 1);
    EXPECT_THAT(registering(agent, memory, kSize),
                AllOf(HasSubstr("mlx5_0"), HasSubstr("8388608 bytes"), HasSubstr("peermem")));
    unsetenv("DOCA_STANDIN_FAIL");
    EXPECT_EQ(registering(agent, memory, kSize), "none");
    standins_.gpus.free(other);
}

// Two agents of this process with memory of a GPU each.
class GpunetioPairTest : public GpunetioFailureTest {
  protected:
    void SetUp() override {
        near_ = std::make_unique<Agent>("near", config());
        far_ = std::make_unique<Agent>("far", config());
        for (auto* const agent : {near_.get(), far_.get()}) {
            RegistrationList list(MemType::VRAM);
            list.append(agent == near_.get() ? source_ : target_, kSize,
                        agent == near_.get() ? 0 : 1);
            agent->registerMemory(list, {});
        }
        near_->addPeer(far_->metadata());
    }
    TransferHandle prepare(OpType op, uint64_t size = kSize) {
        DescriptorList here(MemType::VRAM);
        here.append(source_, size, 0);
        DescriptorList there(MemType::VRAM);
        there.append(target_, size, 1);
        return near_->prepareTransfer(op, here, there, "far");
    }
    std::string outcome(TransferHandle& handle) {
        try {
            return near_->waitTransfer(handle, std::chrono::seconds(30)) == XferState::DONE ? "DONE"
                                                                                            : "?";
        } catch (const Error& error) {
            return error.what();
        }
    }

    const std::string bytes_ = std::string(kSize / 4, 'a') + std::string(kSize / 4 * 3, 'b');
    uint64_t source_ = standins_.gpus.allocate(bytes_);
    uint64_t target_ = standins_.gpus.allocate(kSize, 1);
    std::unique_ptr<Agent> near_;
    std::unique_ptr<Agent> far_;
};

TEST_F(GpunetioPairTest, MovesBetweenTwoGpusAndTells) {
    TransferHandle write = prepare(OpType::WRITE);
    EXPECT_EQ(near_->explainTransfer(write.id()).lane, "gpunetio");
    EXPECT_EQ(near_->explainTransfer(write.id()).device, "GPU 0 to GPU 1");
    near_->postTransfer(write, "written");
    EXPECT_EQ(outcome(write), "DONE");
    EXPECT_EQ(testkit::StandinGpus::text(target_, kSize), bytes_);
    ASSERT_TRUE(far_->waitNotifications(std::chrono::seconds(10)));
    EXPECT_EQ(far_->takeNotifications().at(0).message, "written");
}

TEST_F(GpunetioPairTest, MoreRequestsThanTheRingHolds) {
    DescriptorList here(MemType::VRAM);
    DescriptorList there(MemType::VRAM);
    constexpr uint64_t kPieces = 5000;
    for (uint64_t i = 0; i < kPieces; ++i) {
        here.append(source_ + i * 1024, 512, 0);
        there.append(target_ + (kPieces - i) * 1024, 512, 1);
    }
    TransferHandle write = near_->prepareTransfer(OpType::WRITE, here, there, "far");
    for (int round = 0; round < 3; ++round) {
        near_->postTransfer(write);
        ASSERT_EQ(outcome(write), "DONE");
    }
    for (uint64_t i = 0; i < kPieces; ++i) {
        ASSERT_EQ(testkit::StandinGpus::text(target_ + (kPieces - i) * 1024, 512),
                  bytes_.substr(i * 1024, 512))
            << i;
    }
}

TEST_F(GpunetioPairTest, CancelEndsWhatIsUnderWay) {
    TransferHandle warm = prepare(OpType::READ, 4096);
    near_->postTransfer(warm);
    ASSERT_EQ(outcome(warm), "DONE");
    TransferHandle read = prepare(OpType::READ);
    standins_.hold(true);
    near_->postTransfer(read);
    near_->cancelTransfer(read.id());
    standins_.hold(false);
    const std::string how = outcome(read);
    EXPECT_TRUE(how == "DONE" || how.find("cancel") != std::string::npos) << how;
    near_->postTransfer(warm);
    EXPECT_EQ(outcome(warm), "DONE");
}

TEST_F(GpunetioPairTest, AgentsThatEndLeaveNothing) {
    TransferHandle write = prepare(OpType::WRITE);
    near_->postTransfer(write);
    ASSERT_EQ(outcome(write), "DONE");
    EXPECT_EQ(standins_.figure(1), 2U);
    EXPECT_EQ(standins_.figure(2), 2U);
    standins_.hold(true);
    near_->postTransfer(write);  // its requests never end by themselves
    near_.reset();
    far_.reset();
    EXPECT_EQ(standins_.figure(1), 0U);
    EXPECT_EQ(standins_.figure(2), 0U);
}

TEST_F(GpunetioPairTest, QueuesThatCannotBeMadeFailTheTransferAndAreTriedAgain) {
    for (const char* call : {"doca_verbs_qp_create", "doca_verbs_cq_create", "doca_umem_gpu_create",
                             "doca_uar_create", "doca_verbs_qp_modify", "doca_gpu_mem_alloc"}) {
        setenv("DOCA_STANDIN_FAIL", call, 1);
        TransferHandle write = prepare(OpType::WRITE, 4096);
        near_->postTransfer(write);
        EXPECT_THAT(outcome(write), HasSubstr("stand-in failure")) << call;
        unsetenv("DOCA_STANDIN_FAIL");
        TransferHandle again = prepare(OpType::WRITE, 4096);
        near_->postTransfer(again);
        EXPECT_EQ(outcome(again), "DONE") << call;
        near_->removePeer("far");
        near_->addPeer(far_->metadata());
    }
    standins_.gpus.failOnce("cuLaunchKernel", 0, 2);
    TransferHandle write = prepare(OpType::WRITE, 4096);
    near_->postTransfer(write);
    EXPECT_THAT(outcome(write), HasSubstr("starting the kernel"));
    near_->postTransfer(write);
    EXPECT_EQ(outcome(write), "DONE");
}

}  // namespace
}  // namespace nixl::gpunetio
