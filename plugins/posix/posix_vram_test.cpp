// GPU memory, staged through bounce buffers, against a stand-in of the CUDA driver.
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "posix_test_support.h"
#include "testing/gpu.h"

namespace nixl::posix {
namespace {

using testing::Contains;
using testing::HasSubstr;

class PosixVramTest : public testing::TestWithParam<const char*> {
  protected:
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

    testkit::StandinGpus gpus_;
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
        const uint64_t from = gpus_.allocate(source);
        const uint64_t to = gpus_.allocate(source.size());
        auto written = run(OpType::WRITE, from, source.size());
        ASSERT_EQ(written->state(), XferState::DONE) << written->status.message();
        auto read = run(OpType::READ, to, source.size());
        ASSERT_EQ(read->state(), XferState::DONE) << read->status.message();
        EXPECT_TRUE(gpus_.text(to, source.size()) == source) << flags;
        gpus_.free(from);
        gpus_.free(to);
    }
}

TEST_P(PosixVramTest, FailedCopyIsReported) {
    const uint64_t memory = gpus_.allocate(std::string(100'000, 'x'));
    gpus_.fail("cuMemcpyAsync", 0, 700);
    auto end = run(OpType::WRITE, memory, 100'000);
    ASSERT_EQ(end->state(), XferState::FAILED);
    EXPECT_THAT(end->status.message(), HasSubstr("cuMemcpyAsync: an illegal memory access"));
    std::ofstream(path_) << std::string(200'000, 'z');
    gpus_.fail("copy", 0, 700);
    auto read = run(OpType::READ, memory, 100'000);
    ASSERT_EQ(read->state(), XferState::FAILED);
    EXPECT_THAT(read->status.message(), HasSubstr("cuEventQuery: an illegal memory access"));
    gpus_.fail(nullptr, 0, 0);
    // Nothing is held back by the failures.
    EXPECT_EQ(run(OpType::READ, memory, 100'000)->state(), XferState::DONE);
    EXPECT_TRUE(gpus_.text(memory, 100'000) == std::string(100'000, 'z'));
    gpus_.free(memory);
}

TEST_P(PosixVramTest, WhatIsNoMemoryOfTheGpuIsRefusedAtRegistration) {
    const uint64_t memory = gpus_.allocate(4096, 1);
    auto refused = backend_->registerMemory({MemType::VRAM, memory, 4096, 3, ""});
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.status().code(), ErrorCode::INVALID_PARAM);
    EXPECT_THAT(refused.status().message(), HasSubstr("there is no GPU 3"));
    refused = backend_->registerMemory({MemType::VRAM, memory, 4096, 0, ""});
    ASSERT_FALSE(refused.ok());
    EXPECT_THAT(refused.status().message(), HasSubstr("it belongs to device 1"));
    gpus_.free(memory);
}

}  // namespace
}  // namespace nixl::posix
