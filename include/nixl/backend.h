// The contract between the core and a backend. A backend moves bytes between memory it has
// registered; it knows nothing of agents, metadata stores or Python.
//
// Threads: the core may call any method from any thread. Calls on one BackendTransfer are
// serialised by the core, save that `cancel` may come while `post` runs (the Completion's
// cancelRequested() is set first); calls on different objects may run concurrently.
// Nothing here may throw.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/descriptor.h"
#include "nixl/error.h"
#include "nixl/transfer.h"

namespace nixl {

// What one backend keeps of one registration. The destructor deregisters it; the core destroys it
// only when no posted transfer uses it, and before the backend.
class NIXL_API BackendMemory {
  public:
    virtual ~BackendMemory() = default;
    // Storage: tells the file, device or object from another one that is registered under the same
    // device id. Of two that differ the newer registration counts, and the core ends the older one.
    // Empty: the metadata tells.
    virtual std::string identity() const { return {}; }
};

struct MemoryRegion {
    MemType type = MemType::DRAM;
    uint64_t address = 0;  // pointer, or offset in bytes
    uint64_t size = 0;
    uint64_t deviceId = 0;
    std::string_view metadata;  // label, "rw:/path" or key; valid during the call only
};

// One registered range that a plan uses. Owned by the core, valid as long as the BackendTransfer.
struct PlanRegion {
    MemType type = MemType::DRAM;
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t deviceId = 0;
    std::string_view metadata;
    BackendMemory* memory = nullptr;  // from registerMemory or importMemory of this backend
    uint64_t id = 0;                  // the owner's region id, the same in its metadata blob
    uint32_t generation = 0;
};

// `count` segments of `size` bytes; addresses grow by the strides (modulo 2^64). For storage the
// remote address is the offset in the file, device or object.
struct PlanRun {
    uint64_t local = 0;
    uint64_t remote = 0;
    uint64_t size = 0;
    uint64_t localStride = 0;
    uint64_t remoteStride = 0;
    uint64_t count = 1;
    uint64_t planOffset = 0;   // bytes of the plan before this run
    uint32_t localRegion = 0;  // index into TransferPlan::localRegions
    uint32_t remoteRegion = 0;
};

// One contiguous copy.
struct Segment {
    uint64_t local = 0;
    uint64_t remote = 0;
    uint64_t size = 0;
    uint64_t planOffset = 0;  // bytes of the plan before this segment: names it in a failure
    uint32_t localRegion = 0;
    uint32_t remoteRegion = 0;
};

// Whom a plan moves bytes to or from.
struct PlanPeer {
    std::string_view name;                  // the agent's own name where it is itself
    std::array<uint8_t, 16> incarnation{};  // random, one per agent object
    bool self = true;                       // this very agent (also for storage)
};

// Everything a backend needs to prepare one transfer. Owned by the core; valid, and unchanged, as
// long as the BackendTransfer made from it. Segments are unordered among each other.
struct TransferPlan {
    OpType op = OpType::READ;
    PlanPeer peer;
    std::span<const PlanRegion> localRegions;
    std::span<const PlanRegion> remoteRegions;
    std::span<const PlanRun> runs;
    uint64_t bytes = 0;
    uint64_t segments = 0;
    uint64_t descriptors = 0;
};

// Reads a plan segment by segment; copyable, so a place can be kept.
class SegmentCursor {
  public:
    explicit SegmentCursor(std::span<const PlanRun> runs) : runs_(runs) {}

    // The next segment, or false at the end.
    bool next(Segment& out) noexcept {
        if (run_ == runs_.size()) {
            return false;
        }
        const PlanRun& run = runs_[run_];
        out = {run.local + step_ * run.localStride,
               run.remote + step_ * run.remoteStride,
               run.size,
               run.planOffset + step_ * run.size,
               run.localRegion,
               run.remoteRegion};
        if (++step_ == run.count) {
            step_ = 0;
            ++run_;
        }
        return true;
    }

  private:
    std::span<const PlanRun> runs_;
    size_t run_ = 0;
    uint64_t step_ = 0;
};

// A part of a plan that failed: `size` bytes from `planOffset`, of which the first `done` were
// moved. The core maps it to the user's descriptors.
struct SegmentFailure {
    uint64_t planOffset = 0;
    uint64_t size = 0;
    uint64_t done = 0;
    int systemErrno = 0;
};

// Where the end of ONE post is reported, from any thread. It ends once: cancel, deadline and peer
// loss race with success, the first end wins (true), later ones are ignored (false). The winning
// call is the backend's last access to the transfer and its memory.
class NIXL_API Completion {
  public:
    virtual ~Completion();
    Completion(const Completion&) = delete;
    Completion& operator=(const Completion&) = delete;

    XferState state() const noexcept { return state_.load(std::memory_order_acquire); }
    bool final() const noexcept { return state() != XferState::PENDING; }
    // True once the user, a deadline or the agent's end asked for an early end.
    bool cancelRequested() const noexcept { return cancel_.load(std::memory_order_acquire); }
    void requestCancel() noexcept { cancel_.store(true, std::memory_order_release); }

    bool succeed();
    bool fail(Status status, std::vector<SegmentFailure> failures = {});
    bool cancel(std::string why = "canceled");
    // For a mechanism that cannot stop at once (its peer is silent): the user is told of the end
    // now. The post itself ends by one of the above, later; until then its memory stays in use.
    virtual void tellUser(const Status& /*why*/, const std::vector<SegmentFailure>& /*failures*/) {}

  protected:
    Completion() = default;
    // Runs once, on the ending thread, before state() shows the end.
    virtual void onFinal(XferState state,
                         Status&& status,
                         std::vector<SegmentFailure>&& failed) = 0;
    // Runs once, right after state() shows the end; may wake waiters.
    virtual void afterFinal() {}

  private:
    bool finish(XferState state, Status&& status, std::vector<SegmentFailure>&& failures);

    std::atomic<bool> ended_{false};
    std::atomic<bool> cancel_{false};
    std::atomic<XferState> state_{XferState::PENDING};
};

using CompletionPtr = std::shared_ptr<Completion>;

// For agent.explain(): texts for people.
struct TransferDescription {
    std::string lane;
    std::string reason;
    std::string device;
};

// A prepared transfer; may be posted again after its last Completion is final. The core destroys
// it only when no post is pending.
class NIXL_API BackendTransfer {
  public:
    virtual ~BackendTransfer() = default;
    // Starts moving bytes and returns at once (it may finish inline while the estimated cost is
    // small). On error nothing was started and the completion stays untouched. `notification`
    // (only given to backends with notifications()) reaches the peer after the data;
    // `has_notification` tells an empty one from none.
    virtual Status post(CompletionPtr completion,
                        std::string_view notification,
                        bool has_notification) = 0;
    // Asks for an early end of the current post; its Completion still becomes final. Does nothing
    // when nothing is posted. With a local destination no byte changes after the Completion ended.
    virtual void cancel() = 0;
    // Advances a pending post without blocking; callers who poll or wait call it.
    virtual void help() {}
    virtual TransferDescription describe() const { return {}; }
    // The name of the lane it takes, for counting; valid as long as the backend. Empty: none.
    virtual std::string_view lane() const { return {}; }
    // How many bytes of the last post have been moved, where the backend can tell; any thread.
    virtual std::optional<uint64_t> bytesDone() const { return std::nullopt; }
    // What one post would take, where the backend can tell.
    virtual std::optional<TransferCost> estimateCost() const { return std::nullopt; }
};

// For network backends that keep their own connections and remote keys (backends built on the
// project's lanes need none of this: the core's blob has all they need).
class NIXL_API RemoteSupport {
  public:
    virtual ~RemoteSupport() = default;
    virtual Result<std::string> connectionInfo() = 0;
    virtual Status addPeer(const PlanPeer& peer, std::string_view connection_info) = 0;
    virtual void removePeer(const PlanPeer& peer) = 0;
    virtual Status connect(const PlanPeer& peer) = 0;
    // The agent's session with the peer has ended: it died, is silent, restarted, or this agent
    // ends. What is pending with it must end soon, with this reason; it may come back. Must not
    // block. Not told of a peer for which removePeer is called.
    virtual void peerLost(const PlanPeer& /*peer*/, const Status& /*why*/) {}
    // The remote key of a registration; empty: there is none, and peers import nothing.
    virtual Result<std::string> exportMemory(const BackendMemory& memory) = 0;
    virtual Result<std::unique_ptr<BackendMemory>> importMemory(const PlanPeer& peer,
                                                                const MemoryRegion& region,
                                                                std::string_view blob) = 0;
};

class NIXL_API NotificationSupport {
  public:
    virtual ~NotificationSupport() = default;
    virtual Status sendNotification(const PlanPeer& peer, std::string_view message) = 0;
};

struct StorageEntry {
    std::string name;
    std::map<std::string, std::string> attributes;  // "size" (bytes), "mtime" (seconds), …
};

// Looks at storage without moving its bytes.
class NIXL_API QuerySupport {
  public:
    virtual ~QuerySupport() = default;
    // One entry per region: nullopt where it does not exist, else its attributes as text. Fails as
    // a whole only when the store cannot be asked.
    virtual Result<std::vector<std::optional<std::map<std::string, std::string>>>> query(
        std::span<const MemoryRegion> regions) = 0;
    virtual Result<std::vector<StorageEntry>> list(std::string_view prefix, size_t limit);
    virtual Status remove(std::string_view name);
    // One Status for each; by default one after the other.
    virtual std::vector<Status> removeMany(std::span<const std::string> names);
};

struct BackendInfo {
    std::string name;
    std::vector<MemType> memoryTypes;
    // Storage: the remote side of a plan is a file, block device or object of this agent.
    bool storage = false;
};

class NIXL_API Backend {
  public:
    virtual ~Backend() = default;
    virtual const BackendInfo& info() const = 0;
    virtual Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) = 0;
    // NOT_SUPPORTED with a reason lets the core try the next backend.
    virtual Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) = 0;
    // For backends without a thread of their own: advances posted transfers without blocking.
    virtual void progress() {}
    virtual bool needsProgress() const { return false; }

    // A backend that has a capability returns it, so a flag cannot disagree with a method.
    virtual RemoteSupport* remote() { return nullptr; }
    virtual NotificationSupport* notifications() { return nullptr; }
    virtual QuerySupport* query() { return nullptr; }
    // True for backends on the project's lanes, which reach peers through the agent's session.
    virtual bool usesLanes() const { return false; }

    bool supportsLocal() const { return true; }
    bool supportsRemote() { return usesLanes() || remote() != nullptr; }
    bool supportsNotif() { return usesLanes() || notifications() != nullptr; }
    const std::vector<MemType>& getSupportedMems() const { return info().memoryTypes; }
};

}  // namespace nixl
