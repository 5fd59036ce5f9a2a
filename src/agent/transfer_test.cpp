// What is meant for one post of a transfer does not reach the next: its end as the backend reports
// it, a cancel, a deadline. The backend is this test.
#include "agent/transfer.h"

#include <chrono>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace nixl::agent {
namespace {

using Clock = std::chrono::steady_clock;

struct Seen {
    std::vector<CompletionPtr> posts;
    size_t cancels = 0;
};

class SeenTransfer final : public BackendTransfer {
  public:
    explicit SeenTransfer(Seen& seen) : seen_(seen) {}
    Status post(CompletionPtr completion, std::string_view /*text*/, bool /*has_text*/) override {
        seen_.posts.push_back(std::move(completion));
        return {};
    }
    void cancel() override { ++seen_.cancels; }

  private:
    Seen& seen_;
};

class SeenBackend final : public Backend {
  public:
    explicit SeenBackend(Seen& seen) : seen_(seen) {}
    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& /*region*/) override {
        return std::make_unique<BackendMemory>();
    }
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(
        const TransferPlan& /*plan*/) override {
        return std::unique_ptr<BackendTransfer>(std::make_unique<SeenTransfer>(seen_));
    }

  private:
    Seen& seen_;
    const BackendInfo info_{"SEEN", {MemType::DRAM}, false};
};

class TransferTest : public ::testing::Test {
  protected:
    TransferTest() {
        auto loaded = std::make_shared<LoadedBackend>();
        loaded->name = "SEEN";
        loaded->backend = std::make_unique<SeenBackend>(seen_);
        Transfer::Parts parts;
        parts.local = std::make_shared<SideResolution>();
        parts.remote = std::make_shared<SideResolution>();
        parts.backend = std::move(loaded);
        transfer_ = std::move(Transfer::create(std::move(parts), shared_)).value();
    }
    // Posts; its number.
    uint64_t post() {
        EXPECT_TRUE(transfer_->post(std::nullopt).ok());
        return transfer_->state()->pendingPost();
    }

    Seen seen_;
    std::shared_ptr<AgentShared> shared_ =
        std::make_shared<AgentShared>(peer::Identity{"alice", {1}}, peer::Key{2});
    std::unique_ptr<Transfer> transfer_;
};

TEST_F(TransferTest, CancelOfAPostThatHasEndedLeavesTheNextAlone) {
    const uint64_t first = post();
    ASSERT_TRUE(seen_.posts[0]->succeed());
    const uint64_t second = post();
    EXPECT_NE(first, second);
    transfer_->requestCancel(first, Status::timeout("the first one's deadline"));
    transfer_->cancel(first, Clock::now(), Status::timeout("the first one's deadline"));
    EXPECT_EQ(seen_.cancels, 0U);
    EXPECT_FALSE(seen_.posts[1]->cancelRequested());
    EXPECT_EQ(transfer_->word(), TransferState::PENDING);
    ASSERT_TRUE(seen_.posts[1]->cancel());
    EXPECT_EQ(transfer_->word(), TransferState::CANCELED) << "not with the first one's reason";
}

// A backend's thread that stands still between its last word and the end for the user, whom a
// cancel has told in between.
TEST_F(TransferTest, LateEndOfAPostLeavesTheNextAlone) {
    const uint64_t first = post();
    transfer_->cancel(first, Clock::now());
    EXPECT_EQ(transfer_->word(), TransferState::CANCELED);
    EXPECT_EQ(seen_.cancels, 1U);
    ASSERT_TRUE(seen_.posts[0]->succeed());
    const uint64_t second = post();
    EXPECT_FALSE(transfer_->state()->conclude(first, TransferState::DONE, {}, {}));
    EXPECT_EQ(transfer_->word(), TransferState::PENDING);
    EXPECT_EQ(shared_->lateEnds.load(), 2U);
    EXPECT_TRUE(transfer_->state()->conclude(second, TransferState::FAILED,
                                             Status::timeout("its own"), {}));
    EXPECT_EQ(transfer_->error().code(), ErrorCode::TIMEOUT);
    seen_.posts[1]->succeed();
}

TEST_F(TransferTest, NothingIsPendingBeforeAndAfterAPost) {
    EXPECT_EQ(transfer_->state()->pendingPost(), 0U);
    transfer_->cancel(Clock::now() + std::chrono::seconds(20));
    EXPECT_EQ(transfer_->word(), TransferState::UNPOSTED);
    const uint64_t number = post();
    EXPECT_EQ(transfer_->state()->pendingSince(Clock::now()), number);
    EXPECT_EQ(transfer_->state()->pendingSince(Clock::now() - std::chrono::seconds(20)), 0U);
    seen_.posts[0]->succeed();
    EXPECT_EQ(transfer_->state()->pendingPost(), 0U);
}

}  // namespace
}  // namespace nixl::agent
