// One prepared transfer: its plan, the backend's part, and the state of its last post.
//
// Threads: every call is safe from any thread; state() is one atomic load. Post, cancel and the
// backend's part are serialised by the transfer's own mutex.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nixl/backend.h"

#include "agent/loaded_backend.h"
#include "agent/peer.h"
#include "agent/shared.h"
#include "base/mutex.h"
#include "base/recycler.h"
#include "memory/plan.h"
#include "telemetry/series.h"

namespace nixl::agent {

// One side of a transfer, resolved for one backend. Immutable; shared by prepared lists and the
// transfers made from them.
struct SideResolution {
    memory::ResolvedSide side;
    std::vector<PlanRegion> regions;
    std::vector<memory::RegionUse> uses;  // of this agent's own regions, as regions; else empty
    std::shared_ptr<Peer> peer;           // the other agent, else null
};

// The end of the last post, shared with its Completion: outlives the transfer.
struct TransferState {
    // As wide as the futex word it is kept in.
    // NOLINTNEXTLINE(performance-enum-size)
    enum Word : uint32_t { UNPOSTED, PENDING, DONE, FAILED, CANCELED };

    explicit TransferState(std::shared_ptr<AgentShared> owner) : agent(std::move(owner)) {}
    // Posts are counted from 1 on: who means one of them must not hit the next.
    uint64_t begin() NIXL_REQUIRES(mutex);
    // Ends this post for the user, if nobody has; the backend may still be busy.
    bool conclude(uint64_t post, Word end, Status status, std::vector<SegmentFailure> failures);
    base::WaitResult wait(base::Deadline deadline);
    // The post that is in progress, if it was made at `when` or before; else 0.
    uint64_t pendingSince(std::chrono::steady_clock::time_point when) const;
    uint64_t pendingPost() const {
        return pendingSince(std::chrono::steady_clock::time_point::max());
    }

    const std::shared_ptr<AgentShared> agent;
    std::atomic<uint32_t> word{UNPOSTED};
    std::atomic<uint32_t> waiters{0};
    std::atomic<bool> busy{false};  // the backend has not reported its end

    mutable Mutex mutex;
    uint64_t number NIXL_GUARDED_BY(mutex) = 0;          // of the last post
    telemetry::SeriesPtr series NIXL_GUARDED_BY(mutex);  // set before the first post
    uint64_t bytes NIXL_GUARDED_BY(mutex) = 0;           // of one post
    Status error NIXL_GUARDED_BY(mutex);
    Status cancelReason NIXL_GUARDED_BY(mutex);  // replaces CANCELED, for deadlines
    std::vector<SegmentFailure> segmentFailures NIXL_GUARDED_BY(mutex);
    std::chrono::system_clock::time_point startTime NIXL_GUARDED_BY(mutex);
    std::chrono::steady_clock::time_point started NIXL_GUARDED_BY(mutex);
    std::chrono::steady_clock::time_point ended NIXL_GUARDED_BY(mutex);
    std::chrono::nanoseconds postDuration NIXL_GUARDED_BY(mutex){0};
    bool inlinePost NIXL_GUARDED_BY(mutex) = false;
};

class Transfer {
  public:
    struct Parts {
        OpType op = OpType::READ;
        memory::PlanRuns runs;
        std::shared_ptr<const SideResolution> local;
        std::shared_ptr<const SideResolution> remote;
        std::shared_ptr<LoadedBackend> backend;
        std::optional<std::string> notification;
    };
    static Result<std::unique_ptr<Transfer>> create(Parts parts,
                                                    const std::shared_ptr<AgentShared>& agent);
    ~Transfer();  // REQUIRES: !busy()
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

    // REPOST_ACTIVE while a post is in progress. On error the transfer is FAILED with it.
    Status post(std::optional<std::string_view> notification);
    uint32_t word() const noexcept { return state_->word.load(std::memory_order_acquire); }
    bool busy() const noexcept { return state_->busy.load(std::memory_order_acquire); }
    // Asks for an early end of this post. `reason` replaces CANCELED where it is an error.
    void requestCancel(uint64_t post, Status reason);
    // The same, and waits for it until `limit`; then the post ends for the user even if its backend
    // cannot stop.
    void cancel(uint64_t post, base::Deadline limit, Status reason = {});
    void cancel(base::Deadline limit, Status reason = {}) {
        cancel(state_->pendingPost(), limit, std::move(reason));
    }
    // Lets the backend advance (backends without a thread of their own).
    void progress();
    bool needsProgress() const { return parts_.backend->backend->needsProgress(); }

    const std::shared_ptr<TransferState>& state() const noexcept { return state_; }
    Status error() const;
    std::vector<DescriptorFailure> failures() const;
    Result<TransferTelemetry> telemetry() const;
    TransferProgress howFar() const;
    TransferExplanation explain() const;
    TransferCost estimate() const;
    const std::string& backendName() const noexcept { return parts_.backend->name; }
    std::string peerName() const { return std::string(plan_.peer.name); }
    // For those who watch; the age is that of the post, or how long ago it ended.
    struct View {
        uint32_t word = TransferState::UNPOSTED;
        std::string_view lane;
        std::string peer;
        OpType op = OpType::READ;
        uint64_t bytes = 0;
        std::chrono::nanoseconds age{0};
        std::chrono::nanoseconds took{0};
    };
    View view(std::chrono::steady_clock::time_point now) const;
    std::string line(std::chrono::steady_clock::time_point now) const;

  private:
    friend class PostCompletion;
    Transfer(Parts parts, const std::shared_ptr<AgentShared>& agent);
    Status pinAll();
    void unpinAll() noexcept;
    // Counts posts; made when first needed.
    telemetry::Series& series() NIXL_REQUIRES(mutex_) NIXL_REQUIRES(state_->mutex);
    Status refused(Status why) NIXL_REQUIRES(mutex_);

    Parts parts_;
    std::vector<uint32_t> usedLocal_;  // indices of own regions that the plan touches
    std::vector<uint32_t> usedRemote_;
    TransferPlan plan_;
    const std::shared_ptr<TransferState> state_;
    const std::shared_ptr<base::Recycler> completions_ = std::make_shared<base::Recycler>();
    bool coreNotifies_ = false;  // the backend has no notifications: the core delivers to itself

    mutable Mutex mutex_;
    std::unique_ptr<BackendTransfer> inner_ NIXL_GUARDED_BY(mutex_);
    std::shared_ptr<Completion> current_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::agent
