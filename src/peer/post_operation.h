// One post of a transfer to a peer over the lanes host and stream: moves the bytes, then notifies.
// Threads: any; posts of one transfer are serialised by the core.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/copy_pool.h"
#include "base/mutex.h"
#include "base/poll_set.h"
#include "base/recycler.h"
#include "lanes/host/plan_maps.h"
#include "lanes/stream/job.h"
#include "lanes/stream/parts.h"
#include "peer/engine_impl.h"

namespace nixl::peer {

// The status, with the peer's name where it does not say it yet.
Status named(Status status, const std::string& peer);

// What the posts of a transfer use one after the other, so that the second allocates nothing.
// Touched by the post alone, and posts are serialised by the core.
struct PostMemory {
    std::shared_ptr<base::Recycler> operations = std::make_shared<base::Recycler>();
    std::shared_ptr<base::Recycler> jobs = std::make_shared<base::Recycler>();
    std::shared_ptr<StreamParts> parts;
};

// One post. Owns everything that may outlive the transfer object's attention.
class PostOperation final : public StreamJobOwner,
                            public base::PollSet::Member,
                            public std::enable_shared_from_this<PostOperation> {
  public:
    PostOperation(std::shared_ptr<EngineImpl> engine,
                  std::shared_ptr<Link> link,
                  const TransferPlan& plan,
                  std::shared_ptr<const PlanMaps> maps,
                  std::shared_ptr<PostMemory> memory,
                  CompletionPtr completion)
        : engine_(std::move(engine)),
          link_(std::move(link)),
          plan_(plan),
          maps_(std::move(maps)),
          memory_(std::move(memory)),
          op_(plan.op),
          completion_(std::move(completion)) {}

    void notify(std::string_view message);
    // Starts moving bytes over the lane that the session allows.
    void start(const LaneOptions& options, bool inline_allowed);
    void fail(const Status& status);
    void cancel();
    void help();

  private:
    enum class Phase : uint8_t { WAITING, MOVING, NOTIFYING, ENDED };

    void startHost(const std::shared_ptr<HostPeer>& host, bool inline_allowed);
    void pollReady() override {}
    // Nobody polls, or for something else.
    void resumeReads() override;
    bool copyChunk(HostPeer& host, uint64_t index, uint64_t size);
    void copied();
    void startStream(bool inline_allowed);
    void streamed(Status status, std::vector<SegmentFailure> failures) override;
    void cancelStream(const std::shared_ptr<StreamJob>& job);
    // The data has been moved, or not.
    void moved(Status status, std::vector<SegmentFailure> failures);

    const std::shared_ptr<EngineImpl> engine_;
    const std::shared_ptr<Link> link_;
    const TransferPlan& plan_;  // valid until the completion is final
    const std::shared_ptr<const PlanMaps> maps_;
    const std::shared_ptr<PostMemory> memory_;
    const OpType op_;
    const CompletionPtr completion_;
    std::string notification_;
    bool notify_ = false;
    bool checksum_ = false;
    bool askedMaps_ = false;
    std::atomic<uint64_t> token_{0};  // of the notification, once it is queued

    Mutex mutex_;
    Phase phase_ NIXL_GUARDED_BY(mutex_) = Phase::WAITING;
    std::shared_ptr<base::ChunkedJob> copy_ NIXL_GUARDED_BY(mutex_);
    std::shared_ptr<StreamJob> stream_ NIXL_GUARDED_BY(mutex_);
    Status status_ NIXL_GUARDED_BY(mutex_);
    std::vector<SegmentFailure> failures_ NIXL_GUARDED_BY(mutex_);
};

}  // namespace nixl::peer
