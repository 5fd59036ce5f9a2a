// See plan.h.
#include "memory/plan.h"

#include <algorithm>
#include <string>

namespace nixl::memory {
namespace {

// Collects segments in list order: joins neighbours, then folds equal steps into runs.
class RunBuilder {
  public:
    RunBuilder(PlanRuns& out, bool merge) : out_(out), merge_(merge) {}

    void add(uint64_t local,
             uint64_t remote,
             uint64_t size,
             uint32_t local_region,
             uint32_t remote_region) {
        if (size == 0) {
            return;
        }
        out_.bytes += size;
        if (merge_ && pending_.local + pending_.size == local &&
            pending_.remote + pending_.size == remote && pending_.localRegion == local_region &&
            pending_.remoteRegion == remote_region && pending_.size != 0) {
            pending_.size += size;
            return;
        }
        flush();
        pending_.local = local;
        pending_.remote = remote;
        pending_.size = size;
        pending_.localRegion = local_region;
        pending_.remoteRegion = remote_region;
    }

    // A whole run of both sides at once.
    void addRun(const PlanRun& run) {
        if (run.size == 0) {
            return;
        }
        if (run.count == 1 ||
            (merge_ && run.localStride == run.size && run.remoteStride == run.size)) {
            add(run.local, run.remote, run.size * run.count, run.localRegion, run.remoteRegion);
            return;
        }
        // The first segment may join what came before; the rest cannot join each other.
        add(run.local, run.remote, run.size, run.localRegion, run.remoteRegion);
        flush();
        PlanRun rest = run;
        rest.local += run.localStride;
        rest.remote += run.remoteStride;
        rest.count -= 1;
        out_.bytes += rest.size * rest.count;
        emit(rest);
    }

    void finish() { flush(); }

  private:
    // The common case of scattered lists: fields are written where they stay, since copying a
    // struct just written waits for its stores.
    void flush() {
        if (pending_.size == 0) {
            return;
        }
        out_.segments += 1;
        if (out_.runs.empty() || !extend(out_.runs.back(), pending_)) {
            PlanRun& run = out_.runs.emplace_back();
            run.local = pending_.local;
            run.remote = pending_.remote;
            run.size = pending_.size;
            run.planOffset = offset_;
            run.localRegion = pending_.localRegion;
            run.remoteRegion = pending_.remoteRegion;
        }
        offset_ += pending_.size;
        pending_.size = 0;
    }

    void emit(const PlanRun& run) {
        out_.segments += run.count;
        if (out_.runs.empty() || !extend(out_.runs.back(), run)) {
            out_.runs.push_back(run);
            out_.runs.back().planOffset = offset_;
        }
        offset_ += run.size * run.count;
    }

    static bool extend(PlanRun& last, const Segment& one) {
        if (last.size != one.size || last.localRegion != one.localRegion ||
            last.remoteRegion != one.remoteRegion) {
            return false;
        }
        if (last.count == 1) {
            last.localStride = one.local - last.local;
            last.remoteStride = one.remote - last.remote;
        } else if (last.local + last.count * last.localStride != one.local ||
                   last.remote + last.count * last.remoteStride != one.remote) {
            return false;
        }
        ++last.count;
        return true;
    }

    static bool extend(PlanRun& last, const PlanRun& run) {
        if (last.size != run.size || last.localRegion != run.localRegion ||
            last.remoteRegion != run.remoteRegion) {
            return false;
        }
        const uint64_t local_step = run.local - (last.local + (last.count - 1) * last.localStride);
        const uint64_t remote_step =
            run.remote - (last.remote + (last.count - 1) * last.remoteStride);
        const bool last_fits =
            last.count == 1 || (last.localStride == local_step && last.remoteStride == remote_step);
        const bool run_fits =
            run.count == 1 || (run.localStride == local_step && run.remoteStride == remote_step);
        if (!last_fits || !run_fits) {
            return false;
        }
        last.localStride = local_step;
        last.remoteStride = remote_step;
        last.count += run.count;
        return true;
    }

    PlanRuns& out_;
    bool merge_;
    uint64_t offset_ = 0;
    Segment pending_;
};

void countSize(PlanRuns& plan, uint64_t size, uint64_t count = 1) {
    if (count == 0) {
        return;
    }
    if (!plan.sizes.empty() && plan.sizes.back().first == size) {
        plan.sizes.back().second += count;
    } else {
        plan.sizes.emplace_back(size, count);
    }
}

// Adds one pair of descriptors of equal size, either of which may lie in several regions.
void addPair(RunBuilder& builder,
             const ResolvedSide& local_side,
             uint64_t local_index,
             const ResolvedSide::Entry& local,
             const ResolvedSide& remote_side,
             uint64_t remote_index,
             const ResolvedSide::Entry& remote) {
    if (local.region != kSplit && remote.region != kSplit) {
        builder.add(local.address, remote.address, local.size, local.region, remote.region);
        return;
    }
    const ResolvedSide::Piece whole_local{0, local.address, local.size, local.region};
    const ResolvedSide::Piece whole_remote{0, remote.address, remote.size, remote.region};
    std::span<const ResolvedSide::Piece> left{&whole_local, 1};
    std::span<const ResolvedSide::Piece> right{&whole_remote, 1};
    if (local.region == kSplit) {
        left = local_side.piecesOf(local_index);
    }
    if (remote.region == kSplit) {
        right = remote_side.piecesOf(remote_index);
    }
    uint64_t left_done = 0;
    uint64_t right_done = 0;
    while (!left.empty() && !right.empty()) {
        const uint64_t size =
            std::min(left.front().size - left_done, right.front().size - right_done);
        builder.add(left.front().address + left_done, right.front().address + right_done, size,
                    left.front().region, right.front().region);
        left_done += size;
        right_done += size;
        if (left_done == left.front().size) {
            left = left.subspan(1);
            left_done = 0;
        }
        if (right_done == right.front().size) {
            right = right.subspan(1);
            right_done = 0;
        }
    }
}

Status sizesDiffer(uint64_t index, uint64_t local, uint64_t remote) {
    return Status::invalidParam("descriptor " + std::to_string(index) + ": the local side has " +
                                    std::to_string(local) + " bytes, the remote side " +
                                    std::to_string(remote),
                                static_cast<int64_t>(index));
}

// Cuts the single descriptor of `one` by the sizes of `many`.
void pairOneToMany(const ResolvedSide& one,
                   const ResolvedSide& many,
                   bool one_is_local,
                   RunBuilder& builder,
                   PlanRuns& plan) {
    const ResolvedSide::Entry whole = one.at(0);
    // Its pieces, cut once more where a descriptor of the other side ends.
    ResolvedSide cut;
    uint64_t done = 0;
    const auto cut_out = [&](uint64_t size) {
        ResolvedSide::Entry entry{whole.address + done, size, whole.region};
        cut.pieces.clear();
        if (whole.region == kSplit) {
            for (const ResolvedSide::Piece& piece : one.piecesOf(0)) {
                const uint64_t start = std::max(piece.address, entry.address);
                const uint64_t stop =
                    std::min(piece.address + piece.size, entry.address + entry.size);
                if (start < stop) {
                    cut.pieces.push_back({0, start, stop - start, piece.region});
                }
            }
        }
        done += size;
        return entry;
    };
    for (uint64_t i = 0; i < many.count; ++i) {
        const ResolvedSide::Entry other = many.at(i);
        const ResolvedSide::Entry part = cut_out(other.size);
        countSize(plan, other.size);
        if (one_is_local) {
            addPair(builder, cut, 0, part, many, i, other);
        } else {
            addPair(builder, many, i, other, cut, 0, part);
        }
    }
}

// Both sides in runs of whole regions: as many steps as runs, however many descriptors.
Status pairRuns(const ResolvedSide& local,
                const ResolvedSide& remote,
                RunBuilder& builder,
                PlanRuns& plan) {
    size_t l = 0;
    size_t r = 0;
    uint64_t index = 0;
    while (index < local.count) {
        const ResolvedSide::Run& left = local.runs[l];
        const ResolvedSide::Run& right = remote.runs[r];
        const uint64_t steps = std::min(left.start + left.count, right.start + right.count) - index;
        if (left.size != right.size) {
            return sizesDiffer(index, left.size, right.size);
        }
        countSize(plan, left.size, steps);
        PlanRun run;
        run.local = left.address + (index - left.start) * left.stride;
        run.remote = right.address + (index - right.start) * right.stride;
        run.size = left.size;
        run.localStride = left.stride;
        run.remoteStride = right.stride;
        run.count = steps;
        run.localRegion = left.region;
        run.remoteRegion = right.region;
        if (left.region == kSplit || right.region == kSplit) {
            for (uint64_t i = 0; i < steps; ++i) {
                addPair(builder, local, index + i, local.at(index + i), remote, index + i,
                        remote.at(index + i));
            }
        } else {
            builder.addRun(run);
        }
        index += steps;
        l += index == left.start + left.count ? 1 : 0;
        r += index == right.start + right.count ? 1 : 0;
    }
    return {};
}

// Reads a side by index as fast as its form allows.
class SideReader {
  public:
    explicit SideReader(const ResolvedSide& side) : side_(side) {}
    ResolvedSide::Entry at(uint64_t index) {
        if (side_.runs.empty()) {
            return side_.flatAt(index);
        }
        const ResolvedSide::Run* run = &side_.runs[last_];
        if (index - run->start >= run->count) {
            const auto after = std::upper_bound(
                side_.runs.begin(), side_.runs.end(), index,
                [](uint64_t i, const ResolvedSide::Run& one) { return i < one.start; });
            last_ = static_cast<size_t>(after - side_.runs.begin()) - 1;
            run = &side_.runs[last_];
        }
        return {run->address + (index - run->start) * run->stride, run->size, run->region};
    }

  private:
    const ResolvedSide& side_;
    size_t last_ = 0;
};

// Reads a side that is one run in one region.
class UniformReader {
  public:
    explicit UniformReader(const ResolvedSide& side)
        : address_(side.runs[0].address),
          stride_(side.runs[0].stride),
          size_(side.runs[0].size),
          region_(side.runs[0].region) {}
    ResolvedSide::Entry at(uint64_t index) const {
        return {address_ + index * stride_, size_, region_};
    }

  private:
    uint64_t address_;
    uint64_t stride_;
    uint64_t size_;
    uint32_t region_;
};

template <typename Index>
Status badIndex(const char* side, size_t position, Index index, uint64_t count) {
    return Status::invalidParam(std::string(side) + " index " + std::to_string(index) +
                                    " at position " + std::to_string(position) +
                                    " is outside the prepared list of " + std::to_string(count) +
                                    " descriptors",
                                static_cast<int64_t>(position));
}

// Pairs both sides by index. Readers are copied, so that what they hold can stay in registers.
template <typename Index>
struct IndexedPairs {
    const ResolvedSide& local;
    std::span<const Index> localIndices;
    const ResolvedSide& remote;
    std::span<const Index> remoteIndices;

    template <typename Reader>
    Status into(PlanRuns& plan, bool merge, Reader left, Reader right) const {
        RunBuilder builder(plan, merge);
        const uint64_t local_count = local.count;
        const uint64_t remote_count = remote.count;
        uint64_t size = 0;  // of the last descriptors, and how many there were of it
        uint64_t equal = 0;
        for (size_t i = 0; i < localIndices.size(); ++i) {
            // A negative index becomes a huge one.
            const auto l_index = static_cast<uint64_t>(static_cast<int64_t>(localIndices[i]));
            const auto r_index = static_cast<uint64_t>(static_cast<int64_t>(remoteIndices[i]));
            if (l_index >= local_count) {
                return badIndex("local", i, localIndices[i], local_count);
            }
            if (r_index >= remote_count) {
                return badIndex("remote", i, remoteIndices[i], remote_count);
            }
            const ResolvedSide::Entry l = left.at(l_index);
            const ResolvedSide::Entry r = right.at(r_index);
            if (l.size != r.size) {
                return sizesDiffer(i, l.size, r.size);
            }
            if (l.size > UINT64_MAX - plan.bytes) {
                return Status::invalidParam("the indices add up to more than 2^64 bytes",
                                            static_cast<int64_t>(i));
            }
            if (l.size != size) {
                countSize(plan, size, equal);
                size = l.size;
                equal = 0;
            }
            ++equal;
            if (l.region != kSplit && r.region != kSplit) {
                builder.add(l.address, r.address, l.size, l.region, r.region);
            } else {
                addPair(builder, local, l_index, l, remote, r_index, r);
            }
        }
        countSize(plan, size, equal);
        builder.finish();
        return {};
    }
};

}  // namespace

Result<PlanRuns> pairSides(const ResolvedSide& local, const ResolvedSide& remote, bool merge) {
    PlanRuns plan;
    RunBuilder builder(plan, merge);
    plan.descriptors = std::max(local.count, remote.count);
    if (local.count != remote.count) {
        if ((local.count == 1 || remote.count == 1) && local.bytes == remote.bytes &&
            local.count != 0 && remote.count != 0) {
            const bool one_is_local = local.count == 1;
            pairOneToMany(one_is_local ? local : remote, one_is_local ? remote : local,
                          one_is_local, builder, plan);
            builder.finish();
            return plan;
        }
        return Status::invalidParam("the local side has " + std::to_string(local.count) +
                                    " descriptors (" + std::to_string(local.bytes) +
                                    " bytes), the remote side " + std::to_string(remote.count) +
                                    " (" + std::to_string(remote.bytes) + " bytes)");
    }
    if (local.flat.empty() && remote.flat.empty()) {
        NIXL_RETURN_IF_ERROR(pairRuns(local, remote, builder, plan));
    } else {
        SideReader left(local);
        SideReader right(remote);
        for (uint64_t i = 0; i < local.count; ++i) {
            const ResolvedSide::Entry l = left.at(i);
            const ResolvedSide::Entry r = right.at(i);
            if (l.size != r.size) {
                return sizesDiffer(i, l.size, r.size);
            }
            countSize(plan, l.size);
            addPair(builder, local, i, l, remote, i, r);
        }
    }
    builder.finish();
    return plan;
}

template <typename Index>
Result<PlanRuns> pairIndices(const ResolvedSide& local,
                             std::span<const Index> local_indices,
                             const ResolvedSide& remote,
                             std::span<const Index> remote_indices,
                             bool merge) {
    if (local_indices.size() != remote_indices.size()) {
        return Status::mismatch(std::to_string(local_indices.size()) + " local indices but " +
                                std::to_string(remote_indices.size()) + " remote ones");
    }
    PlanRuns plan;
    plan.descriptors = local_indices.size();
    const auto uniform = [](const ResolvedSide& side) {
        return side.runs.size() == 1 && side.runs[0].region != kSplit;
    };
    IndexedPairs<Index> pairs{local, local_indices, remote, remote_indices};
    NIXL_RETURN_IF_ERROR(uniform(local) && uniform(remote)
                             ? pairs.into(plan, merge, UniformReader(local), UniformReader(remote))
                             : pairs.into(plan, merge, SideReader(local), SideReader(remote)));
    return plan;
}

template Result<PlanRuns> pairIndices<int32_t>(const ResolvedSide&,
                                               std::span<const int32_t>,
                                               const ResolvedSide&,
                                               std::span<const int32_t>,
                                               bool);
template Result<PlanRuns> pairIndices<int64_t>(const ResolvedSide&,
                                               std::span<const int64_t>,
                                               const ResolvedSide&,
                                               std::span<const int64_t>,
                                               bool);

std::vector<DescriptorFailure> mapFailure(const PlanRuns& plan, const SegmentFailure& failure) {
    std::vector<DescriptorFailure> failed;
    const uint64_t good_until = failure.planOffset + failure.done;
    const uint64_t end = failure.planOffset + failure.size;
    uint64_t offset = 0;
    uint64_t index = 0;
    for (const auto& [size, count] : plan.sizes) {
        const uint64_t run_end = offset + size * count;
        if (size == 0 || run_end <= failure.planOffset) {
            offset = run_end;
            index += count;
            continue;
        }
        uint64_t step = failure.planOffset > offset ? (failure.planOffset - offset) / size : 0;
        for (; step < count && offset + step * size < end; ++step) {
            const uint64_t start = offset + step * size;
            if (start + size <= good_until && failure.done != 0) {
                continue;  // moved whole before the failure
            }
            const uint64_t moved = good_until > start ? std::min(good_until - start, size) : 0;
            failed.push_back({index + step, failure.systemErrno, moved});
        }
        offset = run_end;
        index += count;
        if (offset >= end) {
            break;
        }
    }
    return failed;
}

std::vector<DescriptorFailure> mapFailures(const PlanRuns& plan,
                                           std::span<const SegmentFailure> failures) {
    std::vector<DescriptorFailure> failed;
    for (const SegmentFailure& failure : failures) {
        std::vector<DescriptorFailure> some = mapFailure(plan, failure);
        failed.insert(failed.end(), some.begin(), some.end());
    }
    std::stable_sort(failed.begin(), failed.end(), [](const auto& a, const auto& b) {
        return a.index != b.index ? a.index < b.index : a.bytes < b.bytes;
    });
    failed.erase(std::unique(failed.begin(), failed.end(),
                             [](const auto& a, const auto& b) { return a.index == b.index; }),
                 failed.end());
    return failed;
}

}  // namespace nixl::memory
