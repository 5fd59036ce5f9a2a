// See deal_runs.h.
#include "deal_runs.h"

#include <algorithm>

namespace nixl {
namespace {

// `count` segments of a run, from its `first` one.
PlanRun slice(const PlanRun& run, uint64_t first, uint64_t count) {
    PlanRun part = run;
    part.local += first * run.localStride;
    part.remote += first * run.remoteStride;
    part.planOffset += first * run.size;
    part.count = count;
    return part;
}

// The run's one segment as pieces.
void cut(const PlanRun& segment, uint64_t piece, std::vector<PlanRun>& out) {
    PlanRun whole = segment;
    whole.size = whole.localStride = whole.remoteStride = piece;
    whole.count = segment.size / piece;
    if (whole.count != 0) {
        out.push_back(whole);
    }
    if (const uint64_t moved = whole.count * piece; moved != segment.size) {
        PlanRun rest = segment;
        rest.local += moved;
        rest.remote += moved;
        rest.planOffset += moved;
        rest.size -= moved;
        out.push_back(rest);
    }
}

}  // namespace

std::vector<std::vector<PlanRun>> dealRuns(
    std::span<const PlanRun> runs, uint64_t bytes, size_t parts, uint64_t piece, uint64_t least) {
    std::vector<PlanRun> pieces;
    for (const PlanRun& run : runs) {
        if (run.size <= piece) {
            pieces.push_back(run);
            continue;
        }
        for (uint64_t i = 0; i < run.count; ++i) {
            cut(slice(run, i, 1), piece, pieces);
        }
    }
    const uint64_t wanted = std::clamp<uint64_t>(bytes / least, 1, parts);
    const uint64_t share = (bytes + wanted - 1) / wanted;
    std::vector<std::vector<PlanRun>> out(1);
    uint64_t room = share;
    for (PlanRun run : pieces) {
        while (run.count != 0) {
            if (room == 0) {
                out.emplace_back();
                room = share;
            }
            // The last segment of a part may reach beyond its share.
            const uint64_t fit = run.size == 0 ? run.count : (room + run.size - 1) / run.size;
            const uint64_t count = std::min(run.count, fit);
            out.back().push_back(slice(run, 0, count));
            room -= std::min(room, count * run.size);
            run = slice(run, count, run.count - count);
        }
    }
    return out;
}

}  // namespace nixl
