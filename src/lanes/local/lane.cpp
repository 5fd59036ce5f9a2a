// See lane.h.
#include "lanes/local/lane.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/copy_pool.h"
#include "base/mutex.h"
#include "base/threads.h"
#include "device/plan_copy.h"
#include "lanes/local/device_transfer.h"
#include "lanes/local/local_post.h"
#include "session/target_access.h"

namespace nixl::peer {
namespace {

// What a copy costs, for choosing between inline and queued: measured on a 2-core machine, a
// memcpy of scattered 1 KiB blocks moves about 9 GB/s and a further block costs about 20 ns.
constexpr double kBytesPerMicrosecond = 8'000;
constexpr double kMicrosecondsPerSegment = 0.02;
// A chunk is what a caller who polls copies at a time, and what a cancel waits for.
constexpr double kMicrosecondsPerChunk = 100;

// The bytes [begin, end) of the plan, counted over its segments in order.
void copyRange(const TransferPlan& plan, uint64_t begin, uint64_t end) {
    auto run = std::upper_bound(
        plan.runs.begin(), plan.runs.end(), begin,
        [](uint64_t offset, const PlanRun& one) { return offset < one.planOffset; });
    --run;
    uint64_t step = (begin - run->planOffset) / run->size;
    uint64_t inner = (begin - run->planOffset) % run->size;
    const bool read = plan.op == OpType::READ;
    while (begin < end) {
        const uint64_t size = std::min(run->size - inner, end - begin);
        auto* local = reinterpret_cast<char*>(run->local + step * run->localStride + inner);
        auto* remote = reinterpret_cast<char*>(run->remote + step * run->remoteStride + inner);
        // Descriptors may overlap each other, so not memcpy.
        std::memmove(read ? local : remote, read ? remote : local, size);
        begin += size;
        inner = 0;
        if (++step == run->count) {
            step = 0;
            ++run;
        }
    }
}

// Whether a segment's own source and destination overlap: it moves as memmove would, which pieces
// that several threads copy do not.
bool overlapsItself(const PlanRun& run) {
    const auto meet = [&run](uint64_t step) {
        const uint64_t local = run.local + step * run.localStride;
        const uint64_t remote = run.remote + step * run.remoteStride;
        return local != remote && std::max(local, remote) - std::min(local, remote) < run.size;
    };
    if (run.localStride == run.remoteStride || run.count <= 1) {
        return meet(0);
    }
    const auto span = [&run](uint64_t first, uint64_t stride) {
        const uint64_t last = first + (run.count - 1) * stride;
        return std::pair(std::min(first, last), std::max(first, last) + run.size);
    };
    const auto local = span(run.local, run.localStride);
    const auto remote = span(run.remote, run.remoteStride);
    if (local.second <= remote.first || remote.second <= local.first) {
        return false;
    }
    for (uint64_t step = 0; step < run.count; ++step) {
        if (meet(step)) {
            return true;
        }
    }
    return false;
}

// Copies the plan, each segment in the order in which nothing is overwritten before it was read.
// False where it was canceled.
bool copyInOrder(const TransferPlan& plan, const Completion& completion) {
    const bool read = plan.op == OpType::READ;
    for (const PlanRun& run : plan.runs) {
        for (uint64_t step = 0; step < run.count; ++step) {
            auto* const local = reinterpret_cast<char*>(run.local + step * run.localStride);
            auto* const remote = reinterpret_cast<char*>(run.remote + step * run.remoteStride);
            char* const to = read ? local : remote;
            const char* const from = read ? remote : local;
            for (uint64_t done = 0; done < run.size;) {
                if (completion.cancelRequested()) {
                    return false;
                }
                const uint64_t size = std::min(base::kCopyChunk, run.size - done);
                const uint64_t at = to < from ? done : run.size - done - size;
                std::memmove(to + at, from + at, size);
                done += size;
            }
        }
    }
    return true;
}

class LocalTransfer final : public BackendTransfer {
  public:
    LocalTransfer(const Identity& self,
                  const TransferPlan& plan,
                  std::weak_ptr<TargetAccess> target,
                  PluginServices& services,
                  std::chrono::microseconds budget)
        : self_(self), plan_(plan), target_(std::move(target)), services_(services) {
        cost_ = static_cast<double>(plan.bytes) / kBytesPerMicrosecond +
                static_cast<double>(plan.segments) * kMicrosecondsPerSegment;
        inline_ = cost_ <= static_cast<double>(budget.count());
        const uint64_t chunks = std::max({plan.bytes / base::kCopyChunk,
                                          static_cast<uint64_t>(cost_ / kMicrosecondsPerChunk),
                                          static_cast<uint64_t>(1)});
        chunkBytes_ = (plan.bytes + chunks - 1) / chunks;
        inOrder_ = !inline_ && std::any_of(plan.runs.begin(), plan.runs.end(), overlapsItself);
        if (inOrder_) {
            chunkBytes_ = plan.bytes;
        }
    }

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        // A copy inside post needs nothing that outlives it, and posts are serialised.
        const std::shared_ptr<PostOperation> operation =
            inline_ ? inlineOperation_ : std::make_shared<PostOperation>();
        NIXL_RETURN_IF_ERROR(operation->begin(self_, plan_, target_, std::move(completion),
                                              notification, has_notification));
        if (inline_) {
            if (plan_.bytes > 0) {
                copyRange(plan_, 0, plan_.bytes);
            }
            operation->finish(true);
            return {};
        }
        start(operation);
        return {};
    }

    void cancel() override {
        if (const auto job = current(); job != nullptr) {
            job->stop();
        }
    }

    // A caller that polls copies a chunk too: otherwise it takes a processor from the pool.
    void help() override {
        if (const auto job = current(); job != nullptr) {
            job->progress();
        }
    }

    TransferDescription describe() const override {
        return {"local",
                "both agents live in this process; " +
                    std::string(inline_ ? "copied inside post" : "copied by the copy pool"),
                "memory"};
    }

    std::optional<TransferCost> estimateCost() const override {
        TransferCost cost;
        cost.duration = std::chrono::microseconds(static_cast<int64_t>(cost_) + 1);
        cost.margin = cost.duration;
        cost.method = "memory copy at 8 GB/s and 20 ns a segment";
        return cost;
    }

  private:
    struct PostOperation : LocalPost {
        std::atomic<uint64_t> copied{0};
        void finish(bool whole) { end(whole ? Status() : Status::canceled("")); }
    };

    std::shared_ptr<base::ChunkedJob> current() {
        const MutexLock lock(mutex_);
        return job_;
    }

    void start(const std::shared_ptr<PostOperation>& operation) {
        const uint64_t chunks = (plan_.bytes + chunkBytes_ - 1) / chunkBytes_;
        // The plan outlives the post, and the operation is the last to know of it.
        const TransferPlan& plan = plan_;
        const uint64_t size = chunkBytes_;
        PluginServices& services = services_;
        const auto job = base::ChunkedJob::create(
            chunks,
            [operation, &plan, size, in_order = inOrder_](uint64_t index) {
                if (operation->completion->cancelRequested()) {
                    return false;
                }
                if (in_order) {
                    if (!copyInOrder(plan, *operation->completion)) {
                        return false;
                    }
                    operation->copied.store(plan.bytes, std::memory_order_relaxed);
                    return true;
                }
                const uint64_t begin = index * size;
                const uint64_t end = std::min(begin + size, plan.bytes);
                copyRange(plan, begin, end);
                operation->copied.fetch_add(end - begin, std::memory_order_relaxed);
                return true;
            },
            [operation, bytes = plan.bytes] {
                operation->finish(operation->copied.load() == bytes);
            });
        const auto workers = static_cast<unsigned>(
            std::min<uint64_t>(chunks, std::max(1U, services.copyPool().threads())));
        {
            const MutexLock lock(mutex_);
            job_ = job;
        }
        job->start(services.copyPool(), workers, plan_.bytes > base::kBulkBytes);
    }

    const Identity& self_;
    const TransferPlan& plan_;
    std::weak_ptr<TargetAccess> target_;
    PluginServices& services_;
    double cost_ = 0;
    bool inline_ = false;
    uint64_t chunkBytes_ = 0;
    bool inOrder_ = false;  // one thread does all
    const std::shared_ptr<PostOperation> inlineOperation_ = std::make_shared<PostOperation>();
    Mutex mutex_;  // cancel may come while post sets the job
    std::shared_ptr<base::ChunkedJob> job_ NIXL_GUARDED_BY(mutex_);
};

class LocalLane final : public Lane {
  public:
    LocalLane(Identity self, PluginServices& services, std::chrono::microseconds budget)
        : self_(std::move(self)), services_(services), budget_(budget) {}

    const char* name() const override { return "local"; }

    LaneOffer offer(const TransferPlan& plan) override {
        const auto known = [](const PlanRegion& region) {
            return region.type == MemType::DRAM || region.type == MemType::VRAM;
        };
        if (!std::all_of(plan.localRegions.begin(), plan.localRegions.end(), known) ||
            !std::all_of(plan.remoteRegions.begin(), plan.remoteRegions.end(), known)) {
            return {0, "local copies host and GPU memory only"};
        }
        if (device::touchesDevices(plan)) {
            if (const Status status = services_.devices().available(); !status.ok()) {
                return {0, status.message()};
            }
        }
        if (findLocalAgent(plan.peer.incarnation) == nullptr) {
            return {0, "the agents live in different processes"};
        }
        return {100, "both agents live in this process"};
    }

    Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) override {
        if (device::touchesDevices(plan)) {
            return makeDeviceTransfer(self_, plan, findLocalAgent(plan.peer.incarnation),
                                      services_);
        }
        return std::unique_ptr<BackendTransfer>(std::make_unique<LocalTransfer>(
            self_, plan, findLocalAgent(plan.peer.incarnation), services_, budget_));
    }

  private:
    const Identity self_;
    PluginServices& services_;
    std::chrono::microseconds budget_;
};

}  // namespace

std::unique_ptr<Lane> makeLocalLane(const Identity& self,
                                    PluginServices& services,
                                    std::chrono::microseconds inline_budget) {
    return std::make_unique<LocalLane>(self, services, inline_budget);
}

}  // namespace nixl::peer
