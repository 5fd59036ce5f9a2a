// Pairs two resolved sides into the runs of a transfer plan: merges neighbours, splits one long
// descriptor to match the other side's, keeps regular patterns compressed.
// Values; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nixl/backend.h"

#include "memory/resolve.h"

namespace nixl::memory {

struct PlanRuns {
    std::vector<PlanRun> runs;
    uint64_t bytes = 0;
    uint64_t segments = 0;
    uint64_t descriptors = 0;  // of the longer side
    // For mapping a plan offset back: sizes of the user's descriptors in order. Compressed as runs
    // of equal size: {size, count}.
    std::vector<std::pair<uint64_t, uint64_t>> sizes;
};

// Pairs the sides in order. MISMATCH names the first index whose sizes differ, or the counts.
// Where one side is a single descriptor as long as the other side's total it is split to match.
Result<PlanRuns> pairSides(const ResolvedSide& local, const ResolvedSide& remote, bool merge);

// Pairs local[local_indices[i]] with remote[remote_indices[i]].
template <typename Index>
Result<PlanRuns> pairIndices(const ResolvedSide& local,
                             std::span<const Index> local_indices,
                             const ResolvedSide& remote,
                             std::span<const Index> remote_indices,
                             bool merge);

// The descriptors that [offset, offset + size) of the plan touches, with how many bytes of each lie
// before offset + done.
std::vector<DescriptorFailure> mapFailure(const PlanRuns& plan, const SegmentFailure& failure);

// The same of several failures: each descriptor once, by index. Of several in one descriptor the
// first byte that failed counts: what is in place behind it is of no use to anybody.
std::vector<DescriptorFailure> mapFailures(const PlanRuns& plan,
                                           std::span<const SegmentFailure> failures);

}  // namespace nixl::memory
