// The end of a post for the user and its end for the backend (docs/decisions/0003), over a backend
// that ends when the test says so and cannot be cancelled; and the deadline of each post.
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "nixl/agent.h"

#include "backend/plugins.h"

namespace nixl {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// The posts that have not ended, oldest first.
class Posts {
  public:
    void add(CompletionPtr completion) {
        const std::lock_guard lock(mutex_);
        waiting_.push_back(std::move(completion));
    }
    size_t size() {
        const std::lock_guard lock(mutex_);
        return waiting_.size();
    }
    // Ends the oldest as done; false if somebody else had ended it.
    bool endOne() {
        CompletionPtr first;
        {
            const std::lock_guard lock(mutex_);
            first = std::move(waiting_.front());
            waiting_.erase(waiting_.begin());
        }
        return first->succeed();
    }

  private:
    std::mutex mutex_;
    std::vector<CompletionPtr> waiting_;
};

Posts& posts() {
    static Posts all;
    return all;
}

class StubbornTransfer final : public BackendTransfer {
  public:
    Status post(CompletionPtr completion, std::string_view /*text*/, bool /*has_text*/) override {
        posts().add(std::move(completion));
        return {};
    }
    void cancel() override {}  // a disk that hangs
};

class StubbornBackend final : public Backend {
  public:
    const BackendInfo& info() const override { return info_; }
    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& /*region*/) override {
        return std::make_unique<BackendMemory>();
    }
    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(
        const TransferPlan& /*plan*/) override {
        return std::unique_ptr<BackendTransfer>(std::make_unique<StubbornTransfer>());
    }

  private:
    const BackendInfo info_{"STUBBORN", {MemType::DRAM}, false};
};

Result<std::unique_ptr<Backend>> createStubborn(const Parameters& /*parameters*/,
                                                PluginServices& /*services*/) {
    return std::unique_ptr<Backend>(std::make_unique<StubbornBackend>());
}

constexpr MemType kTypes[] = {MemType::DRAM};

class TwoEnds : public ::testing::Test {
  protected:
    static void SetUpTestSuite() {
        static const PluginTable table{.abi = kPluginAbi,
                                       .kind = PluginKind::BACKEND,
                                       .name = "STUBBORN",
                                       .aliases = nullptr,
                                       .version = "1",
                                       .help = "ends when the test says so",
                                       .memoryTypes = kTypes,
                                       .memoryTypeCount = 1,
                                       .parameters = nullptr,
                                       .parameterCount = 0,
                                       .createBackend = createStubborn,
                                       .exporter = nullptr};
        const Status added = backend::PluginRegistry::instance().add(table);
        ASSERT_TRUE(added.ok()) << added.message();
    }

    void start(milliseconds peer_timeout, milliseconds xfer_timeout = milliseconds(0)) {
        AgentConfig config;
        config.backends = {"STUBBORN"};
        config.peerTimeout = peer_timeout;
        config.xferTimeout = xfer_timeout;
        agent_.emplace("stubborn", config);
        list_.append(reinterpret_cast<uint64_t>(memory_.data()), memory_.size());
        agent_->registerMemory(list_, {});
        const DescriptorList both = list_.trim();
        transfer_ = agent_->prepareTransfer(OpType::WRITE, both, both, "stubborn");
    }

    ErrorCode codeOf(const std::function<void()>& call) {
        try {
            call();
        } catch (const Error& error) {
            text_ = error.what();
            return error.code();
        }
        return ErrorCode::OK;
    }

    std::vector<char> memory_ = std::vector<char>(4096);
    RegistrationList list_;
    std::optional<Agent> agent_;
    TransferHandle transfer_;
    std::string text_;
};

TEST_F(TwoEnds, CancelReturnsSoonAndTheTransferStaysBusy) {
    start(milliseconds(50));
    agent_->postTransfer(transfer_);
    const auto began = Clock::now();
    agent_->cancelTransfer(transfer_.id());
    EXPECT_LT(Clock::now() - began, std::chrono::seconds(5));
    EXPECT_EQ(agent_->transferState(transfer_.id()), XferState::CANCELED);
    EXPECT_NE(agent_->transferError(transfer_.id()).message().find("remote_unconfirmed"),
              std::string::npos);
    // The user's end is there, the backend's is not: no second post over the first one's bytes.
    EXPECT_EQ(codeOf([&] { agent_->postTransfer(transfer_); }), ErrorCode::REPOST_ACTIVE);
    EXPECT_TRUE(posts().endOne());
    EXPECT_EQ(agent_->transferState(transfer_.id()), XferState::CANCELED) << "written once";
    EXPECT_EQ(agent_->stats().at("late_ends"), 1U);
    agent_->postTransfer(transfer_);
    posts().endOne();
    EXPECT_EQ(agent_->checkTransfer(transfer_), XferState::DONE);
}

TEST_F(TwoEnds, MemoryStaysRegisteredUntilTheBackendHasEnded) {
    start(milliseconds(50));
    agent_->postTransfer(transfer_);
    agent_->releaseTransfer(transfer_);
    EXPECT_EQ(codeOf([&] { agent_->deregisterMemory(list_, {}); }), ErrorCode::TIMEOUT);
    EXPECT_NE(text_.find("stays registered"), std::string::npos) << text_;
    EXPECT_EQ(agent_->stats().at("regions"), 1U);
    posts().endOne();
    agent_->deregisterMemory(list_, {});
    EXPECT_EQ(agent_->stats().at("regions"), 0U);
}

TEST_F(TwoEnds, DeregisteringWaitsForTheBackend) {
    start(std::chrono::seconds(30));
    agent_->postTransfer(transfer_);
    agent_->releaseTransfer(transfer_);
    std::atomic<bool> gone{false};
    std::thread waiter([&] {
        agent_->deregisterMemory(list_, {});
        gone = true;
    });
    std::this_thread::sleep_for(milliseconds(30));  // sleeps: who does not wait is through by then
    EXPECT_FALSE(gone);
    posts().endOne();
    waiter.join();
    EXPECT_TRUE(gone);
}

TEST_F(TwoEnds, AnAgentEndsInTimeWithABackendThatDoesNot) {
    start(milliseconds(50));
    agent_->postTransfer(transfer_);
    const auto began = Clock::now();
    agent_.reset();
    EXPECT_LT(Clock::now() - began, std::chrono::seconds(10));
    posts().endOne();  // late, into memory that was kept for it
}

TEST_F(TwoEnds, ADeadlineEndsTheTransferWithItsReason) {
    start(milliseconds(50), milliseconds(20));
    agent_->postTransfer(transfer_);
    EXPECT_EQ(codeOf([&] { agent_->waitTransfer(transfer_, std::chrono::seconds(30)); }),
              ErrorCode::TIMEOUT);
    EXPECT_NE(text_.find("xfer_timeout"), std::string::npos) << text_;
    EXPECT_NE(text_.find("remote_unconfirmed"), std::string::npos) << "it goes on: " << text_;
    EXPECT_EQ(agent_->transferState(transfer_.id()), XferState::FAILED);
    posts().endOne();
}

TEST_F(TwoEnds, EachPostHasADeadlineOfItsOwn) {
    start(milliseconds(50), std::chrono::seconds(3));
    const auto began = Clock::now();
    agent_->postTransfer(transfer_);
    posts().endOne();
    // sleeps: until the first post's deadline has passed, and the second's has not
    std::this_thread::sleep_until(began + milliseconds(2500));
    agent_->postTransfer(transfer_);
    std::this_thread::sleep_until(began + milliseconds(3400));  // sleeps: see above
    const bool late = Clock::now() > began + milliseconds(5400);
    if (!late) {
        EXPECT_EQ(agent_->transferState(transfer_.id()), XferState::PENDING);
    }
    posts().endOne();
}

}  // namespace
}  // namespace nixl
