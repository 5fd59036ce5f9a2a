// The fault-injecting wrapper; see wrappers.h.
#include <array>
#include <atomic>
#include <cerrno>
#include <optional>
#include <random>

#include "backend/late_calls.h"
#include "backend/wrapped.h"
#include "backend/wrappers.h"
#include "base/log.h"

namespace nixl::backend {
namespace {

enum class Fault : uint8_t { REFUSE, FAIL, SHORTEN, DELAY, DUPLICATE };
constexpr size_t kFaults = 5;

// splitmix64: one good random number for each input.
uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15U;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
    return value ^ (value >> 31);
}

// Decides which calls go wrong. Thread-safe.
class Dice {
  public:
    explicit Dice(const FaultPlan& plan) : plan_(plan) {}

    // The number of this call if it is to go wrong.
    std::optional<uint64_t> strikes(Fault fault) {
        const auto kind = static_cast<size_t>(fault);
        const uint64_t every = everyOf(fault);
        if (every == 0) {
            return std::nullopt;
        }
        const uint64_t call = counts_[kind].fetch_add(1, std::memory_order_relaxed);
        if ((call + mix(plan_.seed + kind)) % every != 0) {
            return std::nullopt;
        }
        return call + 1;
    }
    // A number for the details of one fault.
    uint64_t number(Fault fault, uint64_t call) const {
        return mix(mix(plan_.seed + static_cast<uint64_t>(fault)) + call);
    }
    const FaultPlan& plan() const { return plan_; }

  private:
    uint64_t everyOf(Fault fault) const {
        const std::array<uint32_t, kFaults> every = {plan_.refuse, plan_.fail, plan_.shorten,
                                                     plan_.delay, plan_.duplicate};
        return every[static_cast<size_t>(fault)];
    }

    const FaultPlan plan_;
    std::array<std::atomic<uint64_t>, kFaults> counts_{};
};

Status injected(const Dice& dice, const std::string& what, uint64_t call) {
    return Status::backend("injected fault (seed " + std::to_string(dice.plan().seed) +
                               "): " + what + " number " + std::to_string(call),
                           EIO);
}

// What stays of the backend while late calls are under way.
struct Shared {
    explicit Shared(const FaultPlan& plan) : dice(plan) {}
    Dice dice;
    LateCalls late;
};

LateCalls::Clock::time_point later(const Dice& dice, uint64_t random) {
    const auto longest = static_cast<uint64_t>(dice.plan().delayTime.count());
    return LateCalls::Clock::now() +
           std::chrono::microseconds(longest == 0 ? 0 : random % (longest + 1));
}

// The end of one post, on its way to the core.
class FaultyCompletion final : public InnerCompletion,
                               public std::enable_shared_from_this<FaultyCompletion> {
  public:
    FaultyCompletion(CompletionPtr outer, Shared& shared)
        : InnerCompletion(std::move(outer)), shared_(shared) {}

    // The post moved only so much: whatever the inner backend says, it is reported short.
    void shorten(Status status, SegmentFailure failure) {
        short_ = std::move(status);
        shortFailure_ = failure;
    }

    // From here on cancel ends it without asking the inner backend, which is idle.
    void hold() { held_.store(true, std::memory_order_release); }
    // False when it is not held back.
    bool cancelHeld() {
        if (!held_.load(std::memory_order_acquire)) {
            return false;
        }
        outer().cancel("canceled while the fault wrapper held the completion back");
        return true;
    }

  private:
    void ended() override {
        const auto delayed = shared_.dice.strikes(Fault::DELAY);
        if (!delayed) {
            report();
            return;
        }
        hold();
        const uint64_t random = shared_.dice.number(Fault::DELAY, *delayed);
        shared_.late.call(later(shared_.dice, random),
                          [self = shared_from_this()] { self->report(); });
    }

    void report() {
        // Copies: after the first end the core may destroy the backend, and `shared_` with it.
        Shared& shared = shared_;
        const auto twice = shared.dice.strikes(Fault::DUPLICATE);
        const CompletionPtr outer = outerPointer();
        Status again = twice ? injected(shared.dice, "second end of post", *twice) : Status();
        if (twice) {
            const uint64_t random = shared.dice.number(Fault::DUPLICATE, *twice);
            shared.late.call(later(shared.dice, random), [outer, again] {
                // Not before the first end, which is on its way on another thread.
                if (outer->final()) {
                    static_cast<void>(outer->fail(again));
                }
            });
        }
        if (short_ && status().ok()) {
            outer->fail(*short_, {shortFailure_});
        } else {
            passOn();
        }
        if (twice) {
            outer->fail(std::move(again));
        }
    }

    Shared& shared_;
    std::optional<Status> short_;
    SegmentFailure shortFailure_;
    std::atomic<bool> held_{false};
};

// The first `bytes` of a plan.
std::vector<PlanRun> cutRuns(std::span<const PlanRun> runs, uint64_t bytes) {
    std::vector<PlanRun> cut;
    for (const PlanRun& run : runs) {
        const uint64_t left = bytes > run.planOffset ? bytes - run.planOffset : 0;
        if (left >= run.size * run.count) {
            cut.push_back(run);
            continue;
        }
        const uint64_t whole = run.size == 0 ? 0 : left / run.size;
        if (whole > 0) {
            cut.push_back(run);
            cut.back().count = whole;
        }
        if (left > whole * run.size) {
            PlanRun part = run;
            part.local += whole * run.localStride;
            part.remote += whole * run.remoteStride;
            part.planOffset += whole * run.size;
            part.size = left - whole * run.size;
            part.count = 1;
            cut.push_back(part);
        }
        break;
    }
    return cut;
}

// Where the segment starts that byte `offset` of the plan lies in.
uint64_t segmentStart(std::span<const PlanRun> runs, uint64_t offset) {
    for (const PlanRun& run : runs) {
        if (offset < run.planOffset + run.size * run.count) {
            return offset - (offset - run.planOffset) % run.size;
        }
    }
    return offset;
}

// A transfer of the first bytes of a plan, with all that it needs.
struct PartTransfer {
    std::vector<PlanRun> runs;
    TransferPlan plan;
    std::unique_ptr<BackendTransfer> transfer;
};

class FaultyTransfer final : public BackendTransfer {
  public:
    FaultyTransfer(std::unique_ptr<BackendTransfer> whole,
                   Backend& backend,
                   Shared& shared,
                   const TransferPlan& plan)
        : whole_(std::move(whole)), backend_(backend), shared_(shared), plan_(plan) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        Dice& dice = shared_.dice;
        if (const auto call = dice.strikes(Fault::REFUSE)) {
            return injected(dice, "refused call", *call);
        }
        const auto inner = std::make_shared<FaultyCompletion>(std::move(completion), shared_);
        std::shared_ptr<BackendTransfer> transfer = whole_;
        const auto fail = dice.strikes(Fault::FAIL);
        const auto part = dice.strikes(Fault::SHORTEN);
        if (!fail && part && plan_.bytes > 1) {
            auto cut = shorten(*inner, *part);
            if (!cut.ok()) {
                return cut.status();
            }
            transfer = std::move(cut).value();
        }
        current_.set({inner, transfer});
        if (fail || (part && plan_.bytes <= 1)) {
            failPost(inner, fail ? *fail : *part);
            return {};
        }
        NIXL_RETURN_IF_ERROR(transfer->post(inner, notification, has_notification));
        if (inner->outer().cancelRequested()) {
            inner->requestCancel();
        }
        return {};
    }

    void cancel() override {
        const auto [completion, transfer] = current_.get();
        if (!completion) {
            return;
        }
        completion->requestCancel();
        if (!completion->cancelHeld()) {
            transfer->cancel();
        }
    }

    void help() override {
        if (const auto post = current_.get(); post.transfer) {
            post.transfer->help();
        }
    }
    TransferDescription describe() const override { return whole_->describe(); }
    std::string_view lane() const override { return whole_->lane(); }
    std::optional<uint64_t> bytesDone() const override {
        const auto post = current_.get();
        return post.transfer ? post.transfer->bytesDone() : std::nullopt;
    }
    std::optional<TransferCost> estimateCost() const override { return whole_->estimateCost(); }

  private:
    // At once or later, without asking the inner backend.
    void failPost(const std::shared_ptr<FaultyCompletion>& inner, uint64_t call) {
        const Dice& dice = shared_.dice;
        const uint64_t random = dice.number(Fault::FAIL, call);
        auto fail = [inner, status = injected(dice, "failed post", call), bytes = plan_.bytes] {
            std::vector<SegmentFailure> failures;
            if (bytes > 0) {
                failures.push_back({0, bytes, 0, EIO});
            }
            inner->fail(status, std::move(failures));
        };
        if (random % 2 == 0) {
            fail();
        } else {
            inner->hold();
            shared_.late.call(later(dice, random / 2), std::move(fail));
        }
    }

    // A transfer of the first bytes only. REQUIRES: plan_.bytes > 1
    Result<std::shared_ptr<BackendTransfer>> shorten(FaultyCompletion& inner, uint64_t call) {
        const uint64_t random = shared_.dice.number(Fault::SHORTEN, call);
        const uint64_t bytes = 1 + random % (plan_.bytes - 1);
        const auto part = std::make_shared<PartTransfer>();
        part->runs = cutRuns(plan_.runs, bytes);
        part->plan = plan_;
        part->plan.runs = part->runs;
        part->plan.bytes = bytes;
        part->plan.segments = 0;
        for (const PlanRun& run : part->runs) {
            part->plan.segments += run.count;
        }
        auto transfer = backend_.prepareTransfer(part->plan);
        if (!transfer.ok()) {
            return transfer.status();
        }
        part->transfer = std::move(transfer).value();

        const uint64_t start = segmentStart(plan_.runs, bytes);
        const std::string what = std::to_string(bytes) + " of " + std::to_string(plan_.bytes) +
                                 " bytes moved by short post";
        inner.shorten(injected(shared_.dice, what, call),
                      {start, plan_.bytes - start, bytes - start, EIO});
        return std::shared_ptr<BackendTransfer>(part, part->transfer.get());
    }

    const std::shared_ptr<BackendTransfer> whole_;
    Backend& backend_;
    Shared& shared_;
    const TransferPlan plan_;
    mutable CurrentPost<FaultyCompletion> current_;
};

class FaultyBackend final : public WrappedBackend, public QuerySupport {
  public:
    FaultyBackend(std::unique_ptr<Backend> inner, const FaultPlan& plan)
        : WrappedBackend(std::move(inner)), shared_(plan) {}

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        if (const auto call = shared_.dice.strikes(Fault::REFUSE)) {
            return injected(shared_.dice, "refused call", *call);
        }
        return inner().registerMemory(region);
    }

    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        if (const auto call = shared_.dice.strikes(Fault::REFUSE)) {
            return injected(shared_.dice, "refused call", *call);
        }
        auto transfer = inner().prepareTransfer(plan);
        if (!transfer.ok()) {
            return transfer.status();
        }
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<FaultyTransfer>(std::move(transfer).value(), inner(), shared_, plan));
    }

    QuerySupport* query() override { return inner().query() != nullptr ? this : nullptr; }
    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override {
        if (const auto call = shared_.dice.strikes(Fault::REFUSE)) {
            return injected(shared_.dice, "refused call", *call);
        }
        return inner().query()->query(regions);
    }
    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override {
        return inner().query()->list(prefix, limit);
    }
    Status remove(std::string_view name) override { return inner().query()->remove(name); }
    std::vector<Status> removeMany(std::span<const std::string> names) override {
        return inner().query()->removeMany(names);
    }

  private:
    Shared shared_;
};

}  // namespace

std::unique_ptr<Backend> wrapFault(std::unique_ptr<Backend> backend, FaultPlan plan) {
    while (plan.seed == 0) {
        std::random_device random;
        plan.seed = random();
    }
    base::log(LogLevel::WARN,
              "fault injection is on for backend " + backend->info().name + ": " + plan.text());
    return std::make_unique<FaultyBackend>(std::move(backend), plan);
}

}  // namespace nixl::backend
