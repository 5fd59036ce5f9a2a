// Checking and posting; see hf3fs_transfer.h.
#include "hf3fs_transfer.h"

#include <algorithm>

namespace nixl::hf3fs {

namespace {

constexpr uint64_t kInsidePost = 64 << 10;
constexpr uint64_t kInsideSegments = 8;

}  // namespace

Hf3fsTransfer::Hf3fsTransfer(const TransferPlan& plan,
                             posix::BuildLimits limits,
                             posix::Shared& shared,
                             RingEngine& engine)
    : job_(plan, limits, limits, shared), engine_(engine) {
    small_ = plan.bytes <= kInsidePost && plan.segments <= kInsideSegments;
    for (const PlanRegion& region : plan.localRegions) {
        const bool gpu = region.type == MemType::VRAM;
        small_ = small_ && !gpu;
        copied_ = copied_ || gpu || static_cast<const posix::Memory*>(region.memory)->staged;
    }
}

Status Hf3fsTransfer::check(const TransferPlan& plan) {
    for (const PlanRegion& region : plan.localRegions) {
        if (region.type != MemType::DRAM && region.type != MemType::VRAM) {
            return Status::notSupported(std::string("HF3FS: the memory side is ") +
                                        memTypeName(region.type) +
                                        "; only DRAM and VRAM are supported");
        }
    }
    for (const PlanRegion& region : plan.remoteRegions) {
        if (region.type != MemType::FILE) {
            return Status::notSupported(std::string("HF3FS: the storage side is ") +
                                        memTypeName(region.type) + "; only FILE is supported");
        }
        const posix::File& file = *static_cast<const posix::File*>(region.memory);
        if (plan.op == OpType::WRITE && file.append()) {
            return Status::invalidParam("HF3FS: write " + file.label() +
                                        ": opened with O_APPEND, which ignores offsets");
        }
        if (plan.op == OpType::WRITE && !file.writable()) {
            return Status::notAllowed("HF3FS: write " + file.label() +
                                      ": it is open for reading only");
        }
    }
    for (const PlanRun& run : plan.runs) {
        const uint64_t last = run.remote + (run.count - 1) * run.remoteStride;
        const uint64_t highest = std::max(run.remote, last);
        if (highest > INT64_MAX || run.size > INT64_MAX - highest) {
            return Status::invalidParam("HF3FS: offset " + std::to_string(highest) + " + " +
                                        std::to_string(run.size) +
                                        " bytes is beyond any file's end (2^63)");
        }
    }
    return {};
}

Status Hf3fsTransfer::post(CompletionPtr completion,
                           std::string_view /*notification*/,
                           bool /*has_notification*/) {
    NIXL_RETURN_IF_ERROR(job_.holdFiles());
    if (!small_) {
        job_.start(std::move(completion));
        return {};
    }
    // The transfer may be gone as soon as it has started.
    RingEngine& engine = engine_;
    RingEngine::beginSmall();
    job_.start(std::move(completion));
    engine.endSmall();
    return {};
}

TransferDescription Hf3fsTransfer::describe() const {
    return {{}, copied_ ? "USRBIO, copied through shared buffers" : "USRBIO, without a copy", {}};
}

}  // namespace nixl::hf3fs
