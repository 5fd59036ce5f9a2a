// Preparing and posting; see posix_transfer.h.
#include "posix_transfer.h"

#include <algorithm>
#include <cerrno>

#include <sys/uio.h>

namespace nixl::posix {

namespace {

constexpr uint64_t kInlineSegments = 8;

}  // namespace

Status PosixTransfer::check(const TransferPlan& plan) {
    for (const PlanRegion& region : plan.localRegions) {
        if (region.type != MemType::DRAM && region.type != MemType::VRAM) {
            return Status::notSupported(std::string("POSIX: the memory side is ") +
                                        memTypeName(region.type) +
                                        "; only DRAM and VRAM are supported");
        }
    }
    for (const PlanRegion& region : plan.remoteRegions) {
        if (region.type != MemType::FILE) {
            return Status::notSupported(std::string("POSIX: the storage side is ") +
                                        memTypeName(region.type) + "; only FILE is supported");
        }
        const File& file = *static_cast<const File*>(region.memory);
        if (plan.op == OpType::WRITE && file.append()) {
            return Status::invalidParam("POSIX: write " + file.label() +
                                        ": opened with O_APPEND, which ignores offsets");
        }
    }
    for (const PlanRun& run : plan.runs) {
        const uint64_t last = run.remote + (run.count - 1) * run.remoteStride;
        const uint64_t highest = std::max(run.remote, last);
        if (highest > INT64_MAX || run.size > INT64_MAX - highest) {
            return Status::invalidParam("POSIX: offset " + std::to_string(highest) + " + " +
                                        std::to_string(run.size) +
                                        " bytes is beyond any file's end (2^63)");
        }
    }
    return {};
}

PosixTransfer::PosixTransfer(const TransferPlan& plan,
                             BuildLimits queue_limits,
                             BuildLimits pool_limits,
                             uint64_t inline_bytes,
                             Shared& shared)
    : plan_(plan),
      job_(plan, queue_limits, pool_limits, shared),
      small_(plan.bytes <= inline_bytes && plan.segments <= kInlineSegments) {
    for (const PlanRegion& region : plan.localRegions) {
        small_ = small_ && region.type == MemType::DRAM;
    }
    for (const PlanRegion& region : plan.remoteRegions) {
        const auto* file = static_cast<const File*>(region.memory);
        if (small_ && !file->callerOwned()) {
            paths_.push_back(file);
        }
    }
}

Status PosixTransfer::post(CompletionPtr completion,
                           std::string_view /*notification*/,
                           bool /*has_notification*/) {
    if (small_ && job_.buffered() && !completion->cancelRequested()) {
        NIXL_RETURN_IF_ERROR(job_.checkFiles());
        if (tryInline()) {
            completion->succeed();
            return {};
        }
    }
    NIXL_RETURN_IF_ERROR(job_.holdFiles());
    job_.start(std::move(completion));
    return {};
}

// Moves everything at once where the kernel can do so without waiting (RWF_NOWAIT). What was
// moved before it could not is moved again by the pool.
bool PosixTransfer::tryInline() {
    for (const File* file : paths_) {
        if (file->checkName() != 0) {
            return false;
        }
    }
    SegmentCursor cursor(plan_.runs);
    Segment segment;
    while (cursor.next(segment)) {
        if (segment.size > 0 && !moveNow(segment)) {
            return false;
        }
    }
    return true;
}

bool PosixTransfer::moveNow(const Segment& segment) {
    File& file = *static_cast<File*>(plan_.remoteRegions[segment.remoteRegion].memory);
    const bool write = plan_.op == OpType::WRITE;
    std::atomic<bool>& unsupported = write ? file.noNowaitWrite : file.noNowaitRead;
    if (unsupported.load(std::memory_order_relaxed)) {
        return false;
    }
    const bool callers = file.plainCallerFd();
    const int fd = callers ? file.callerFd() : file.acquireOpen(true);
    if (fd < 0) {
        return false;
    }
    const iovec vector{reinterpret_cast<void*>(segment.local), segment.size};
    const auto offset = static_cast<off_t>(segment.remote);
    const ssize_t moved = write ? pwritev2(fd, &vector, 1, offset, RWF_NOWAIT)
                                : preadv2(fd, &vector, 1, offset, RWF_NOWAIT);
    if (moved < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)) {
        unsupported.store(true, std::memory_order_relaxed);
    }
    if (!callers) {
        file.release(true);
    }
    return moved >= 0 && static_cast<uint64_t>(moved) == segment.size;
}

TransferDescription PosixTransfer::describe() const {
    const Shared& shared = job_.sharedState();
    const std::string queue = shared.queue->engine()->name();
    if (job_.buffered()) {
        return {{}, "buffered files go through the thread pool", {}};
    }
    return {{}, "O_DIRECT files go through " + queue, {}};
}

}  // namespace nixl::posix
