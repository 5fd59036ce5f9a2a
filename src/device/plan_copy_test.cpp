// Plans with memory of GPUs, against the stand-in of the driver.
#include "device/plan_copy.h"

#include <cstring>
#include <future>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/gpu.h"
#include "testing/services.h"

namespace nixl::device {
namespace {

using testing::HasSubstr;

constexpr uint64_t kPiece = 1000;
constexpr uint64_t kPieces = 3000;
constexpr uint64_t kBytes = kPiece * kPieces;

struct End {
    Status status;
    std::vector<SegmentFailure> failures;
};

class PlanCopyTest : public testing::Test {
  public:
    PlanCopyTest() {
        source_ = gpus_.allocate(kBytes * 2, 0);
        target_ = gpus_.allocate(kBytes * 2, 1);
        for (uint64_t i = 0; i < kBytes * 2; ++i) {
            gpus_.at(source_)[i] = static_cast<char>(i * 7 + i / 251);
        }
        local_ = {MemType::VRAM, source_, kBytes * 2, 0, {}, nullptr};
        remote_ = {MemType::VRAM, target_, kBytes * 2, 1, {}, nullptr};
        run_ = {source_, target_, kPiece, 2 * kPiece, kPiece, kPieces, 0, 0, 0};
        plan_.op = OpType::WRITE;
        plan_.localRegions = {&local_, 1};
        plan_.remoteRegions = {&remote_, 1};
        plan_.runs = {&run_, 1};
        plan_.bytes = kBytes;
        plan_.segments = kPieces;
    }
    ~PlanCopyTest() override {
        gpus_.free(source_);
        gpus_.free(target_);
    }

  protected:
    std::shared_ptr<PlanCopy> start(bool here = false) {
        ended_ = std::promise<End>();
        auto copy =
            PlanCopy::create(devices(), services_.copyPool(), plan_, placesOf(plan_.remoteRegions),
                             [this](Status status, std::vector<SegmentFailure> failures) {
                                 ended_.set_value({std::move(status), std::move(failures)});
                             });
        copy->start(here);
        return copy;
    }
    End end() { return ended_.get_future().get(); }
    bool arrived(uint64_t piece) {
        return std::memcmp(gpus_.at(target_) + piece * kPiece,
                           gpus_.at(source_) + 2 * piece * kPiece, kPiece) == 0;
    }

    testkit::StandinGpus gpus_;
    testkit::TestServices services_;
    uint64_t source_ = 0;
    uint64_t target_ = 0;
    PlanRegion local_;
    PlanRegion remote_;
    PlanRun run_;
    TransferPlan plan_;
    std::promise<End> ended_;
};

TEST_F(PlanCopyTest, MovesEveryPiece) {
    for (const bool here : {true, false}) {
        std::memset(gpus_.at(target_), 0, kBytes);
        const auto copy = start(here);
        const End ended = end();
        EXPECT_TRUE(ended.status.ok()) << ended.status.message();
        for (uint64_t i = 0; i < kPieces; ++i) {
            ASSERT_TRUE(arrived(i)) << i;
        }
    }
}

TEST_F(PlanCopyTest, NeighboursAreOneCopy) {
    run_.localStride = kPiece;
    const uint64_t before = gpus_.copies();
    start();
    EXPECT_TRUE(end().status.ok());
    EXPECT_EQ(gpus_.copies(), before + 1);
}

TEST_F(PlanCopyTest, ACopyThatFailsIsNamedAndTheOthersArrive) {
    gpus_.failOnce("cuMemcpyAsync", 1500, 1);
    start();
    const End ended = end();
    EXPECT_THAT(ended.status.message(), HasSubstr("cuMemcpyAsync: invalid argument"));
    ASSERT_EQ(ended.failures.size(), 1U);
    EXPECT_EQ(ended.failures[0].size, kPiece);
    EXPECT_EQ(ended.failures[0].done, 0U);
    for (uint64_t i = 0; i < kPieces; ++i) {
        EXPECT_TRUE(arrived(i) || i * kPiece == ended.failures[0].planOffset) << i;
    }
}

TEST_F(PlanCopyTest, AGpuThatFailsFailsAllThatIsNotInPlace) {
    gpus_.fail("copy", 1100, 700);
    start();
    const End ended = end();
    EXPECT_THAT(ended.status.message(), HasSubstr("an illegal memory access"));
    uint64_t failed = 0;
    for (const SegmentFailure& one : ended.failures) {
        failed += one.size;
    }
    EXPECT_GE(failed, kBytes - 1100 * kPiece);
    EXPECT_LE(failed, kBytes);
}

TEST_F(PlanCopyTest, StoppedBeforeItsEndItIsCanceled) {
    gpus_.hold(true);
    const auto copy = start(true);
    copy->stop();
    gpus_.hold(false);
    const End ended = end();
    EXPECT_EQ(ended.status.code(), ErrorCode::CANCELED);
    EXPECT_FALSE(arrived(kPieces - 1));
}

TEST_F(PlanCopyTest, NothingIsTouchedAfterTheEnd) {
    gpus_.hold(true);
    start(true);
    auto future = ended_.get_future();
    EXPECT_EQ(future.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
    gpus_.hold(false);
    EXPECT_TRUE(future.get().status.ok());
    const uint64_t after = gpus_.copies();
    EXPECT_TRUE(arrived(kPieces - 1));
    EXPECT_EQ(gpus_.copies(), after);
}

}  // namespace
}  // namespace nixl::device
