// Checking, posting and describing; see gusli_transfer.h.
#include "gusli_transfer.h"

#include <algorithm>

namespace nixl::gusli {

namespace {

std::string placeText(const PlanRun& run, uint64_t offset) {
    return std::to_string(run.size) + " bytes at " + std::to_string(offset);
}

// The first offset of a run that begins or ends within a block; the run itself where none does.
uint64_t oddOffset(const PlanRun& run, uint64_t block) {
    return run.remote % block == 0 && run.count > 1 ? run.remote + run.remoteStride : run.remote;
}

Status checkRun(const PlanRun& run, const Device& device) {
    const uint64_t block = device.blockSize();
    const uint64_t stride = run.count > 1 ? run.remoteStride : 0;
    if ((run.remote | run.size | stride) % block != 0) {
        return Status::invalidParam("GUSLI: " + device.label() + ": " +
                                    placeText(run, oddOffset(run, block)) +
                                    ": offsets and lengths must be multiples of its block size, " +
                                    std::to_string(block) + " bytes");
    }
    const uint64_t last = run.remote + (run.count - 1) * run.remoteStride;
    const uint64_t highest = std::max(run.remote, last);
    // A file that is written grows; one that is read may have grown until then.
    const bool fixed = device.config().kind == Kind::KERNEL || device.throughClient();
    const uint64_t limit = fixed ? device.size() : uint64_t{INT64_MAX};
    if (highest > limit || run.size > limit - highest) {
        return Status::invalidParam("GUSLI: " + device.label() + ": " + placeText(run, highest) +
                                    " reach beyond its end, " + std::to_string(limit) + " bytes");
    }
    return {};
}

}  // namespace

Status GusliTransfer::check(const TransferPlan& plan) {
    for (const PlanRegion& region : plan.localRegions) {
        if (region.type != MemType::DRAM && region.type != MemType::VRAM) {
            return Status::notSupported(std::string("GUSLI: the memory side is ") +
                                        memTypeName(region.type) +
                                        "; only DRAM and VRAM are supported");
        }
    }
    for (const PlanRegion& region : plan.remoteRegions) {
        if (region.type != MemType::BLOCK) {
            return Status::notSupported(std::string("GUSLI: the storage side is ") +
                                        memTypeName(region.type) + "; only BLOCK is supported");
        }
        const Device& device = deviceOf(*region.memory);
        const Device& first = deviceOf(*plan.remoteRegions.front().memory);
        if (device.throughClient() != first.throughClient()) {
            return Status::notSupported("GUSLI: " + first.label() + " and " + device.label() +
                                        " in one transfer: one of them goes through the GUSLI "
                                        "client, the other through the native engine; use a "
                                        "transfer for each");
        }
        if (plan.op == OpType::WRITE && !device.writable()) {
            return Status::notAllowed("GUSLI: write to " + device.label() +
                                      ": its access is R, read only");
        }
    }
    for (const PlanRun& run : plan.runs) {
        NIXL_RETURN_IF_ERROR(checkRun(run, deviceOf(*plan.remoteRegions[run.remoteRegion].memory)));
    }
    return {};
}

Status GusliTransfer::post(CompletionPtr completion,
                           std::string_view /*notification*/,
                           bool /*has_notification*/) {
    job_.start(std::move(completion));
    return {};
}

TransferDescription GusliTransfer::describe() const {
    if (throughClient_) {
        return {{}, "the GUSLI client, copied through buffers that its servers share", {}};
    }
    const posix::Shared& shared = job_.sharedState();
    if (job_.buffered()) {
        return {{}, "a file system without O_DIRECT: through the page cache", {}};
    }
    return {
        {}, std::string("O_DIRECT through ") + shared.queue->engine()->name() + " (native)", {}};
}

}  // namespace nixl::gusli
