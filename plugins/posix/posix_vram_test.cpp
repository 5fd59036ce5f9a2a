// GPU memory, staged through bounce buffers, against a stand-in of the CUDA driver.
#include <cstdlib>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "posix_test_support.h"

namespace nixl::posix {
namespace {

using testing::Contains;
using testing::HasSubstr;

constexpr uint64_t kGpuBit = 1ULL << 62;
constexpr uint64_t kBrokenBit = 1ULL << 61;

uint64_t gpuAddress(const std::string& memory) {
    return reinterpret_cast<uint64_t>(memory.data()) | kGpuBit;
}

class PosixVramTest : public testing::TestWithParam<const char*> {
  protected:
    static void SetUpTestSuite() { setenv("NIXL_CUDA_LIBRARY", NIXL_POSIX_CUDA_STANDIN, 1); }
    static void TearDownTestSuite() { unsetenv("NIXL_CUDA_LIBRARY"); }

    void SetUp() override {
        auto made = PosixBackend::create(
            parametersWith({{GetParam(), "true"}, {"merge_size", "64K"}, {"bounce_buffers", "2"}}),
            services_);
        ASSERT_TRUE(made.ok()) << made.status().message();
        backend_ = std::move(made).value();
        if (const std::string passed_over = services_.text(LogLevel::WARN); !passed_over.empty()) {
            GTEST_SKIP() << passed_over;
        }
        EXPECT_THAT(backend_->info().memoryTypes, Contains(MemType::VRAM));
    }

    std::shared_ptr<TestCompletion> run(OpType op, uint64_t address, uint64_t size) {
        auto file = backend_->registerMemory({MemType::FILE, 0, 1 << 30, 1, spec_}).value();
        auto memory = backend_->registerMemory({MemType::VRAM, address, size, 0, ""}).value();
        const PlanRegion gpu{MemType::VRAM, address, size, 0, {}, memory.get()};
        const PlanRegion target{MemType::FILE, 0, INT64_MAX, 0, {}, file.get()};
        PlanRun one;
        one.local = address;
        one.remote = 1000;
        one.size = size;
        TransferPlan plan;
        plan.op = op;
        plan.localRegions = {&gpu, 1};
        plan.remoteRegions = {&target, 1};
        plan.runs = {&one, 1};
        plan.bytes = size;
        plan.segments = 1;
        auto transfer = backend_->prepareTransfer(plan);
        EXPECT_TRUE(transfer.ok()) << transfer.status().message();
        auto completion = std::make_shared<TestCompletion>();
        EXPECT_TRUE(transfer.value()->post(completion, "", false).ok());
        completion->wait();
        return completion;
    }

    TestServices services_;
    std::unique_ptr<Backend> backend_;
    TempFolder folder_;
    std::string path_ = folder_ / "f";
    std::string spec_ = "rw,create,direct:" + path_;
};

INSTANTIATE_TEST_SUITE_P(Engines,
                         PosixVramTest,
                         testing::Values("use_aio", "use_uring", "use_posix_aio", "use_threads"),
                         [](const auto& info) { return std::string(info.param + 4); });

TEST_P(PosixVramTest, RoundTrip) {
    for (const std::string flags : {"rw,create:", "rw,create,direct:"}) {
        spec_ = flags + path_;
        std::string source(300'000, '\0');
        for (size_t i = 0; i < source.size(); ++i) {
            source[i] = static_cast<char>(i * 7 + i / 251);
        }
        std::string target(source.size(), '\0');
        auto written = run(OpType::WRITE, gpuAddress(source), source.size());
        ASSERT_EQ(written->state(), XferState::DONE) << written->status.message();
        auto read = run(OpType::READ, gpuAddress(target), target.size());
        ASSERT_EQ(read->state(), XferState::DONE) << read->status.message();
        EXPECT_TRUE(target == source) << flags;
    }
}

TEST_P(PosixVramTest, FailedCopyIsReported) {
    const std::string memory(100'000, 'x');
    auto end = run(OpType::WRITE, gpuAddress(memory) | kBrokenBit, memory.size());
    ASSERT_EQ(end->state(), XferState::FAILED);
    EXPECT_THAT(end->status.message(), HasSubstr("cuMemcpyDtoHAsync: an illegal memory access"));
    std::string target(100'000, 'y');
    std::ofstream(path_) << std::string(200'000, 'z');
    auto read = run(OpType::READ, gpuAddress(target) | kBrokenBit, target.size());
    ASSERT_EQ(read->state(), XferState::FAILED);
    EXPECT_THAT(read->status.message(), HasSubstr("cuMemcpyHtoDAsync"));
    // Nothing is held back by the failures.
    EXPECT_EQ(run(OpType::READ, gpuAddress(target), target.size())->state(), XferState::DONE);
    EXPECT_TRUE(target == std::string(100'000, 'z'));
}

TEST_P(PosixVramTest, MissingGpuIsRefusedAtRegistration) {
    const auto memory = backend_->registerMemory({MemType::VRAM, kGpuBit, 4096, 3, ""});
    ASSERT_FALSE(memory.ok());
    EXPECT_EQ(memory.status().code(), ErrorCode::NOT_SUPPORTED);
    EXPECT_THAT(memory.status().message(), HasSubstr("device 3: cuDeviceGet: invalid device"));
}

}  // namespace
}  // namespace nixl::posix
