// The trace wrapper; see wrappers.h. One line a call, before which the core puts the backend's
// name:
//   trace 3 prepare WRITE 16 segments 65536 bytes to "a": ok in 12 us
#include <atomic>
#include <chrono>
#include <string>

#include "backend/wrapped.h"
#include "backend/wrappers.h"

namespace nixl::backend {
namespace {

using Clock = std::chrono::steady_clock;

std::string since(Clock::time_point start) {
    const auto spent = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
    return std::to_string(spent.count()) + " us";
}

std::string outcome(const Status& status) {
    return status.ok() ? "ok" : std::string(errorName(status.code())) + " " + status.message();
}

const char* stateName(XferState state) {
    switch (state) {
        case XferState::PENDING:
            return "PENDING";
        case XferState::DONE:
            return "DONE";
        case XferState::FAILED:
            return "FAILED";
        case XferState::CANCELED:
            return "CANCELED";
    }
    return "?";
}

std::string describe(const MemoryRegion& region) {
    std::string out = std::string(memTypeName(region.type)) + " address " +
                      std::to_string(region.address) + " size " + std::to_string(region.size) +
                      " device " + std::to_string(region.deviceId);
    if (!region.metadata.empty()) {
        out.append(" \"").append(region.metadata).append("\"");
    }
    return out;
}

// Writes the lines. Owned by the wrapped backend, outlives its transfers.
class Tracer {
  public:
    explicit Tracer(PluginServices& services) : services_(services) {}

    void line(const std::string& text) { services_.log(LogLevel::INFO, "trace " + text); }
    bool on() const { return services_.logs(LogLevel::INFO); }
    uint64_t nextTransfer() { return transfers_.fetch_add(1, std::memory_order_relaxed) + 1; }

  private:
    PluginServices& services_;
    std::atomic<uint64_t> transfers_{0};
};

class TracedCompletion final : public InnerCompletion {
  public:
    TracedCompletion(CompletionPtr outer, Tracer& tracer, std::string name)
        : InnerCompletion(std::move(outer)), tracer_(tracer), name_(std::move(name)) {}

  private:
    void ended() override {
        std::string text = name_ + " end " + stateName(endState()) + " after " + since(start_);
        if (!status().ok()) {
            text += ": " + outcome(status());
        }
        for (const SegmentFailure& failure : failures()) {
            text += "; bytes " + std::to_string(failure.planOffset) + "+" +
                    std::to_string(failure.size) + ": " + std::to_string(failure.done) +
                    " moved, errno " + std::to_string(failure.systemErrno);
        }
        tracer_.line(text);
        passOn();
    }

    Tracer& tracer_;
    const std::string name_;
    const Clock::time_point start_ = Clock::now();
};

class TracedTransfer final : public BackendTransfer {
  public:
    TracedTransfer(std::unique_ptr<BackendTransfer> inner, Tracer& tracer, std::string name)
        : inner_(std::move(inner)), tracer_(tracer), name_(std::move(name)) {}
    ~TracedTransfer() override { tracer_.line(name_ + " released"); }

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        const auto start = Clock::now();
        const auto inner =
            std::make_shared<TracedCompletion>(std::move(completion), tracer_, name_);
        current_.set({inner, inner_});
        // Kept here: once the post has ended, another thread may destroy this transfer.
        Tracer& tracer = tracer_;
        std::string text = name_ + " post";
        if (has_notification) {
            text += " with a notification of " + std::to_string(notification.size()) + " bytes";
        }
        const std::shared_ptr<BackendTransfer> transfer = inner_;
        Status status = transfer->post(inner, notification, has_notification);
        text += ": " + outcome(status) + " in " + since(start);
        tracer.line(status.ok() && inner->final() ? text + ", ended inline" : text);
        if (inner->outer().cancelRequested()) {
            inner->requestCancel();
        }
        return status;
    }

    void cancel() override {
        tracer_.line(name_ + " cancel");
        if (const auto post = current_.get(); post.completion) {
            post.completion->requestCancel();
        }
        inner_->cancel();
    }
    void help() override { inner_->help(); }
    TransferDescription describe() const override { return inner_->describe(); }
    std::string_view lane() const override { return inner_->lane(); }
    std::optional<uint64_t> bytesDone() const override { return inner_->bytesDone(); }
    std::optional<TransferCost> estimateCost() const override { return inner_->estimateCost(); }

  private:
    const std::shared_ptr<BackendTransfer> inner_;
    Tracer& tracer_;
    const std::string name_;
    CurrentPost<TracedCompletion> current_;
};

class TracedBackend final : public WrappedBackend, public QuerySupport {
  public:
    TracedBackend(std::unique_ptr<Backend> backend, PluginServices& services)
        : WrappedBackend(std::move(backend)), tracer_(services) {}
    ~TracedBackend() override { tracer_.line("destroyed"); }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        const auto start = Clock::now();
        auto memory = inner().registerMemory(region);
        if (tracer_.on()) {
            tracer_.line("register " + describe(region) + ": " + outcome(memory.status()) + " in " +
                         since(start));
        }
        return memory;
    }

    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        const auto start = Clock::now();
        auto transfer = inner().prepareTransfer(plan);
        const std::string name = std::to_string(tracer_.nextTransfer());
        if (tracer_.on()) {
            const char* const direction = plan.op == OpType::READ ? " from \"" : " to \"";
            tracer_.line(name + " prepare " + opName(plan.op) + " " +
                         std::to_string(plan.segments) + " segments " + std::to_string(plan.bytes) +
                         " bytes" + direction + std::string(plan.peer.name) +
                         "\": " + outcome(transfer.status()) + " in " + since(start));
        }
        if (!transfer.ok()) {
            return transfer.status();
        }
        return std::unique_ptr<BackendTransfer>(
            std::make_unique<TracedTransfer>(std::move(transfer).value(), tracer_, name));
    }

    QuerySupport* query() override { return inner().query() != nullptr ? this : nullptr; }
    Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) override {
        const auto start = Clock::now();
        auto answer = inner().query()->query(regions);
        tracer_.line("query " + std::to_string(regions.size()) +
                     " regions: " + outcome(answer.status()) + " in " + since(start));
        return answer;
    }
    Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit) override {
        auto entries = inner().query()->list(prefix, limit);
        tracer_.line("list \"" + std::string(prefix) + "\": " + outcome(entries.status()));
        return entries;
    }
    Status remove(std::string_view name) override {
        Status status = inner().query()->remove(name);
        tracer_.line("remove \"" + std::string(name) + "\": " + outcome(status));
        return status;
    }
    std::vector<Status> removeMany(std::span<const std::string> names) override {
        auto ends = inner().query()->removeMany(names);
        const auto good = std::count_if(ends.begin(), ends.end(),
                                        [](const Status& status) { return status.ok(); });
        tracer_.line("remove " + std::to_string(names.size()) + " names: " + std::to_string(good) +
                     " ok");
        return ends;
    }

  private:
    Tracer tracer_;
};

}  // namespace

std::unique_ptr<Backend> wrapTrace(std::unique_ptr<Backend> backend, PluginServices& services) {
    if (!services.logs(LogLevel::INFO)) {
        services.log(LogLevel::WARN,
                     "trace is on, but its lines are INFO: set NIXL_LOG_LEVEL=INFO to see them");
    }
    return std::make_unique<TracedBackend>(std::move(backend), services);
}

}  // namespace nixl::backend
