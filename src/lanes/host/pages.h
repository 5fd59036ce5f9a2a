// The host lane's shared pages, and copies to and from another process: by attaching to it, or
// through its memory mapped here (host_maps.h). The target publishes the lowest
// valid generation of every region in a page that peers can only read, and gives each peer a page
// of marks in which it marks that it is inside an access. A deregistration bumps the generation and
// waits for the marks. The boundary on one host is the user and ptrace: whoever may attach may do
// anything; the pages guard against mistakes and races.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include <sys/types.h>
#include <sys/uio.h>

#include "nixl/error.h"

#include "base/futex.h"
#include "base/mutex.h"
#include "base/socket.h"
#include "base/threads.h"
#include "session/network_access.h"

namespace nixl::peer {

// A shared mapping that unmaps itself.
class Mapping {
  public:
    Mapping() = default;
    Mapping(void* address, size_t size) : address_(address), size_(size) {}
    Mapping(Mapping&& other) noexcept
        : address_(std::exchange(other.address_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Mapping& operator=(Mapping&& other) noexcept {
        std::swap(address_, other.address_);
        std::swap(size_, other.size_);
        return *this;
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();  // does nothing in a forked child, which does not have it
    template <typename T>
    T* as() const {
        return static_cast<T*>(address_);
    }
    explicit operator bool() const { return address_ != nullptr; }

  private:
    void* address_ = nullptr;
    size_t size_ = 0;
    base::ProcessMark process_;
};

// Layout of the target's page, written by the target alone.
struct GenerationPage {
    static constexpr uint64_t kRegions = 1 << 20;  // ids from here on are not attached to
    std::atomic<uint64_t> epoch;                   // grows with each revocation, starts at 1
    std::atomic<uint32_t> lowestValid[kRegions];   // by region id
};

// Layout of the page of one pair, written by the initiator: the epoch at which the access in each
// mark began, 0 where there is none.
struct MarkPage {
    static constexpr size_t kMarks = 64;
    struct alignas(64) Mark {
        std::atomic<uint64_t> epoch;
    };
    Mark marks[kMarks];
};

// The protocol of the pages, in steps: of what happens in one of them nobody sees a part. The lane
// takes all at once; the simulator (testing/sim) takes them one by one, with those of others
// between.

// One access of an initiator: entered, then looked whether it is allowed, then copied, then left.
class PageAccess {
  public:
    // Looks for a free mark from `start` on.
    PageAccess(MarkPage& marks, const GenerationPage& generations, unsigned start)
        : marks_(marks), generations_(generations), at_(start) {}
    // A step of entering; true: it is inside.
    bool enter();
    bool allowed(uint64_t region, uint32_t generation) const {
        return region < GenerationPage::kRegions &&
               generations_.lowestValid[region].load() <= generation;
    }
    void leave() { mark().exchange(0); }

  private:
    std::atomic<uint64_t>& mark() { return marks_.marks[at_ % MarkPage::kMarks].epoch; }

    MarkPage& marks_;
    const GenerationPage& generations_;
    unsigned at_;
    uint64_t epoch_ = 0;  // not 0: read, to be entered in the mark
};

// A target's revocation of a region; accesses that enter after its last step are refused.
class Revocation {
  public:
    Revocation(GenerationPage& page, uint64_t region, uint32_t generation)
        : page_(page), region_(region), generation_(generation) {}
    bool step();  // true: that was the last

  private:
    GenerationPage& page_;
    const uint64_t region_;
    const uint32_t generation_;
    bool refused_ = false;
};

struct PeerMarks;

// A target's waiting for the accesses that began before now: one look at one mark a step.
class QuietWait {
  public:
    QuietWait(const GenerationPage& page, std::vector<std::shared_ptr<PeerMarks>> peers)
        : epoch_(page.epoch.load()), peers_(std::move(peers)) {}
    bool step();  // true: that was the last
    // How often it has looked at the mark it stands at, and whose that is.
    unsigned looks() const { return looks_; }
    const std::string& peer() const;

  private:
    const uint64_t epoch_;
    const std::vector<std::shared_ptr<PeerMarks>> peers_;
    size_t peer_ = 0;
    size_t mark_ = 0;
    unsigned looks_ = 0;
};

// What a target tells a peer on the control connection: where to find its pages.
struct HostOffer {
    uint32_t generationsFd = 0;
    uint32_t marksFd = 0;
    std::string encode() const;
    static Result<HostOffer> decode(std::string_view body);
};

// The marks of one peer, on the target's side.
struct PeerMarks {
    std::string peer;
    base::Fd file;
    Mapping page;
    base::Fd pidfd;  // of the peer; invalid: unknown
};

// The target's side. Thread-safe.
class HostTarget {
  public:
    // Pages for one more peer, of whose process `pidfd` is a descriptor (invalid: unknown).
    // NOT_SUPPORTED where the system has no sealed memory.
    Result<std::shared_ptr<PeerMarks>> open(const std::string& peer, base::Fd pidfd);
    HostOffer offer(const PeerMarks& marks) const;
    // Duplicates of the descriptors of both pages, to be passed to the peer; none where that fails.
    std::vector<base::Fd> pages(const PeerMarks& marks) const;
    void close(const std::shared_ptr<PeerMarks>& marks);

    void revoke(uint64_t region, uint32_t generation);
    void restore(uint64_t region, uint32_t generation);
    Status awaitQuiet(base::Deadline deadline);
    bool revoked(uint64_t region, uint32_t generation) const;

  private:
    Status ensurePage() NIXL_REQUIRES(mutex_);

    mutable Mutex mutex_;
    base::Fd file_ NIXL_GUARDED_BY(mutex_);
    Mapping page_ NIXL_GUARDED_BY(mutex_);
    std::vector<std::shared_ptr<PeerMarks>> peers_ NIXL_GUARDED_BY(mutex_);
    // Revocations from before there was a page.
    std::unordered_map<uint64_t, uint32_t> early_ NIXL_GUARDED_BY(mutex_);
};

// How a peer on this host showed itself.
struct HostProcess {
    pid_t pid = 0;   // 0: in another PID namespace
    base::Fd pidfd;  // invalid: the system gives none
    uint64_t cookieAt = 0;
    Key cookie{};
};

// The initiator's side of one process. Thread-safe.
class HostPeer {
  public:
    // Maps the pages of `offer`, from `passed` (generations, marks) where the session brought
    // their descriptors, and tries to attach: checks that the process holds `cookie` at
    // `cookieAt`. NOT_SUPPORTED with the reason where neither copies by attaching nor through
    // mapped memory are possible.
    static Result<std::shared_ptr<HostPeer>> create(HostProcess process,
                                                    const HostOffer& offer,
                                                    const std::vector<base::Fd>& passed);

    // Up to kMaxVectors pairs of pieces. Attached: remote places are of the peer's memory, and
    // the pieces of both sides need not end at the same places. Mapped: they are places here, and
    // the i-th local piece belongs to the i-th remote one.
    struct Batch {
        const iovec* local = nullptr;
        size_t localCount = 0;
        const iovec* remote = nullptr;
        size_t remoteCount = 0;
        // Regions of the remote side: id and generation.
        std::span<const std::pair<uint64_t, uint32_t>> regions;
        uint64_t bytes = 0;
        bool mapped = false;
    };
    // Moves one batch; `moved` says how much. An error names the cause; systemErrno is set where
    // the kernel refused (EFAULT: memory that is not there) or the peer is gone (ESRCH: its process
    // has ended; ENOTCONN: only its connection).
    Status transfer(OpType op, const Batch& batch, uint64_t& moved);
    // Lets nothing of these regions be deregistered there until the holder goes: for copies that
    // run by themselves. An error as transfer() gives it.
    static Result<std::shared_ptr<void>> hold(
        std::shared_ptr<HostPeer> peer, std::span<const std::pair<uint64_t, uint32_t>> regions);
    // The process has ended, as far as can be told.
    bool dead();
    // Told by the session: the peer is gone. Nothing is copied any more.
    void end() { ended_.store(true, std::memory_order_release); }
    // The region of this generation is registered there.
    bool valid(uint64_t region, uint32_t generation) const;
    // Memory that is not mapped here can be reached.
    bool attached() const { return attachError_.empty(); }
    const std::string& attachError() const { return attachError_; }
    // The peer passes descriptors over the session.
    bool canPassDescriptors() const { return canPassDescriptors_; }
    pid_t pid() const { return process_.pid; }

    static constexpr size_t kMaxVectors = 64;
    static constexpr uint64_t kMaxBytes = 1 << 20;

  private:
    HostPeer() = default;
    Status attach();
    static Status checkRegions(const PageAccess& access,
                               std::span<const std::pair<uint64_t, uint32_t>> regions);
    Status copyAttached(OpType op, const Batch& batch, uint64_t& moved) const;
    Status gone(bool ended) const;

    HostProcess process_;
    std::string attachError_;
    bool canPassDescriptors_ = false;
    std::atomic<bool> ended_{false};
    std::atomic<int64_t> seenAlive_{0};  // ns of steady_clock
    Mapping generations_;
    Mapping marks_;
};

base::Fd duplicateFd(const base::Fd& fd);
bool processEnded(const base::Fd& pidfd);

}  // namespace nixl::peer
