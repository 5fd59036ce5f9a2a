// The suite itself: backends that break the contract in one way each must fail the check that is
// for it. What such a check reports is caught here instead of failing the test.
#include "testing/conformance.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "backend/wrapped.h"
#include "testing/harness.h"
#include "testing/memory_backend.h"

namespace nixl::testkit {
namespace {

enum class Defect : uint8_t {
    NONE,
    LAST_BYTE_LOST,
    BYTE_TOO_MUCH,
    ONLY_FIRST_POST,
    STRIDES_IGNORED,
    NOTIFICATION_FIRST,
    NOTIFICATION_TWICE,
    CANCEL_IS_FAILURE,
    CANCEL_MOVES_ON,
    DESCRIPTOR_LEAK,
    DESCRIPTOR_SURVIVES_EXEC,
    REMOVED_PEER_KNOWN,
    UNDECLARED_TYPE,
};

Defect defect_now = Defect::NONE;

// What the inner backend reports, bent.
class BentCompletion final : public backend::InnerCompletion {
  public:
    BentCompletion(CompletionPtr outer, const TransferPlan& plan)
        : InnerCompletion(std::move(outer)), plan_(plan) {}

  private:
    void ended() override {
        SegmentCursor cursor(plan_.runs);
        Segment segment;
        if (cursor.next(segment) && endState() == XferState::DONE) {
            auto* const target =
                reinterpret_cast<char*>(plan_.op == OpType::READ ? segment.local : segment.remote);
            if (defect_now == Defect::LAST_BYTE_LOST) {
                target[segment.size - 1] += 1;
            } else if (defect_now == Defect::BYTE_TOO_MUCH) {
                target[segment.size] += 1;
            }
        }
        if (endState() == XferState::CANCELED && defect_now == Defect::CANCEL_IS_FAILURE) {
            outer().fail(Status::backend("it broke off"));
        } else {
            passOn();
        }
        if (endState() == XferState::CANCELED && defect_now == Defect::CANCEL_MOVES_ON) {
            std::thread([at = reinterpret_cast<char*>(segment.local)] {
                // sleeps: the defect is to be late
                std::this_thread::sleep_for(std::chrono::milliseconds(5));
                *at ^= 1;
            }).detach();
        }
    }
    const TransferPlan& plan_;
};

// A plan of its own, so that it can be bent.
struct BentPlan {
    explicit BentPlan(const TransferPlan& given)
        : runs(given.runs.begin(), given.runs.end()), plan(given) {
        plan.runs = runs;
    }
    std::vector<PlanRun> runs;
    TransferPlan plan;
};

class BentTransfer final : public BackendTransfer {
  public:
    BentTransfer(std::unique_ptr<BackendTransfer> inner,
                 std::unique_ptr<BentPlan> plan,
                 NotificationSupport& notifications)
        : bent_(std::move(plan)),
          plan_(bent_->plan),
          inner_(std::move(inner)),
          notifications_(notifications) {}

    Status post(CompletionPtr completion, std::string_view message, bool has_message) override {
        if (++posts_ > 1 && defect_now == Defect::ONLY_FIRST_POST) {
            completion->succeed();
            return {};
        }
        if (has_message && defect_now == Defect::NOTIFICATION_TWICE) {
            NIXL_RETURN_IF_ERROR(notifications_.sendNotification(plan_.peer, message));
        }
        if (has_message && defect_now == Defect::NOTIFICATION_FIRST) {
            NIXL_RETURN_IF_ERROR(notifications_.sendNotification(plan_.peer, message));
            // sleeps: the defect is to be early
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            has_message = false;
        }
        const auto bent = std::make_shared<BentCompletion>(std::move(completion), plan_);
        current_.set({bent, nullptr});
        return inner_->post(bent, message, has_message);
    }
    void cancel() override {
        if (const auto post = current_.get(); post.completion) {
            post.completion->requestCancel();
        }
        inner_->cancel();
    }

  private:
    const std::unique_ptr<BentPlan> bent_;
    const TransferPlan& plan_;
    const std::unique_ptr<BackendTransfer> inner_;
    NotificationSupport& notifications_;
    int posts_ = 0;
    backend::CurrentPost<BentCompletion> current_;
};

class BentBackend final : public backend::WrappedBackend, public RemoteSupport {
  public:
    explicit BentBackend(std::unique_ptr<Backend> inner) : WrappedBackend(std::move(inner)) {
        info_ = this->inner().info();
        if (defect_now == Defect::UNDECLARED_TYPE) {
            info_.memoryTypes.push_back(MemType::VRAM);
        }
        if (defect_now == Defect::DESCRIPTOR_SURVIVES_EXEC) {
            file_ = open("/dev/null", O_RDONLY);
        } else if (defect_now == Defect::DESCRIPTOR_LEAK) {
            leaked_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
        }
    }
    ~BentBackend() override {
        if (file_ >= 0) {
            close(file_);
        }
    }
    const BackendInfo& info() const override { return info_; }
    RemoteSupport* remote() override { return this; }

    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        auto bent = std::make_unique<BentPlan>(plan);
        if (defect_now == Defect::STRIDES_IGNORED) {
            for (PlanRun& run : bent->runs) {
                run.remoteStride = run.size;
            }
        }
        auto inner_transfer = inner().prepareTransfer(bent->plan);
        if (!inner_transfer.ok()) {
            return inner_transfer.status();
        }
        return std::unique_ptr<BackendTransfer>(std::make_unique<BentTransfer>(
            std::move(inner_transfer).value(), std::move(bent), *inner().notifications()));
    }

    Result<std::string> connectionInfo() override { return inner().remote()->connectionInfo(); }
    Status addPeer(const PlanPeer& peer, std::string_view info) override {
        return inner().remote()->addPeer(peer, info);
    }
    void removePeer(const PlanPeer& peer) override {
        if (defect_now != Defect::REMOVED_PEER_KNOWN) {
            inner().remote()->removePeer(peer);
        }
    }
    Status connect(const PlanPeer& peer) override { return inner().remote()->connect(peer); }
    Result<std::string> exportMemory(const BackendMemory& memory) override {
        return inner().remote()->exportMemory(memory);
    }
    Result<std::unique_ptr<BackendMemory>> importMemory(const PlanPeer& peer,
                                                        const MemoryRegion& region,
                                                        std::string_view blob) override {
        return inner().remote()->importMemory(peer, region, blob);
    }

  private:
    BackendInfo info_;
    int file_ = -1;
    int leaked_ = -1;
};

Result<std::unique_ptr<Backend>> createBent(const Parameters& parameters,
                                            PluginServices& services) {
    auto inner = memoryBackendTable().createBackend(parameters, services);
    if (!inner.ok()) {
        return inner.status();
    }
    return std::unique_ptr<Backend>(std::make_unique<BentBackend>(std::move(inner).value()));
}

const PluginTable& bentTable() {
    static const PluginTable table = [] {
        PluginTable made = memoryBackendTable();
        made.createBackend = createBent;
        return made;
    }();
    return table;
}

// How many failures the check reports over a backend with this defect.
int failuresOf(const std::string& check_name, Defect defect) {
    Subject subject("Bent", "MEMORY", Subject::NETWORK);
    subject.table = &bentTable();
    subject.slowParameters = {{"delay", "50ms"}};  // a busy machine wakes sleepers late
    subject.reposts = 3;
    subject.largest = 4 << 20;
    defect_now = defect;
    ::testing::TestPartResultArray results;
    {
        const ::testing::ScopedFakeTestPartResultReporter reporter(
            ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ALL_THREADS, &results);
        for (const auto& checks : {transferChecks(), endingChecks(), lifetimeChecks()}) {
            for (const Check& check : checks) {
                if (check.name == check_name) {
                    Bench bench(subject);
                    check.run(bench);
                }
            }
        }
    }
    defect_now = Defect::NONE;
    int failures = 0;
    for (int i = 0; i < results.size(); ++i) {
        failures += results.GetTestPartResult(i).failed() ? 1 : 0;
    }
    return failures;
}

struct Case {
    Defect defect;
    const char* check;
};

const Case kCases[] = {
    {Defect::LAST_BYTE_LOST, "RoundTripSizes"},
    {Defect::LAST_BYTE_LOST, "RoundTripOddBuffers"},
    {Defect::LAST_BYTE_LOST, "RoundTripLargest"},
    {Defect::LAST_BYTE_LOST, "ScatteredSegments"},
    {Defect::LAST_BYTE_LOST, "ManyPending"},
    {Defect::LAST_BYTE_LOST, "ManyThreads"},
    {Defect::LAST_BYTE_LOST, "RegistersTheSameAgain"},
    {Defect::BYTE_TOO_MUCH, "RoundTripSizes"},
    {Defect::ONLY_FIRST_POST, "RePost"},
    {Defect::STRIDES_IGNORED, "RegularRuns"},
    {Defect::NOTIFICATION_FIRST, "NotificationAfterData"},
    {Defect::NOTIFICATION_TWICE, "NotificationAfterData"},
    {Defect::CANCEL_IS_FAILURE, "CancelDuring"},
    {Defect::CANCEL_MOVES_ON, "CancelDuring"},
    {Defect::DESCRIPTOR_LEAK, "LeavesNothingBehind"},
    {Defect::DESCRIPTOR_SURVIVES_EXEC, "DescriptorsCloseOnExec"},
    {Defect::REMOVED_PEER_KNOWN, "PeerRemovedAndAddedAgain"},
    {Defect::UNDECLARED_TYPE, "TellsWhatItCan"},
};

TEST(ConformanceItself, FindsEachDefect) {
    for (const Case& one : kCases) {
        EXPECT_EQ(failuresOf(one.check, Defect::NONE), 0) << one.check;
        EXPECT_GT(failuresOf(one.check, one.defect), 0)
            << one.check << " does not see defect " << static_cast<int>(one.defect);
    }
}

}  // namespace
}  // namespace nixl::testkit
