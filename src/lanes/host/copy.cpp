// See copy.h.
#include "lanes/host/copy.h"

#include <algorithm>

#include "lanes/host/verify.h"

namespace nixl::peer {

namespace {

// Walks a plan from a byte offset on, filling batches. A batch is either of mapped memory or of
// memory that is attached to.
class BatchBuilder {
  public:
    BatchBuilder(const TransferPlan& plan,
                 std::span<const RegionMapPtr> maps,
                 uint64_t begin,
                 uint64_t end)
        : plan_(plan), maps_(maps), at_(begin), end_(end) {
        const auto after = std::upper_bound(
            plan.runs.begin(), plan.runs.end(), begin,
            [](uint64_t offset, const PlanRun& one) { return offset < one.planOffset; });
        run_ = static_cast<size_t>(after - plan.runs.begin()) - 1;
        const PlanRun& run = plan.runs[run_];
        step_ = (begin - run.planOffset) / run.size;
        inner_ = (begin - run.planOffset) % run.size;
    }

    uint64_t offset() const { return at_; }

    bool next(HostPeer::Batch& batch) {
        localCount_ = remoteCount_ = regionCount_ = 0;
        current_ = nullptr;
        uint64_t bytes = 0;
        while (at_ < end_ && bytes < HostPeer::kMaxBytes) {
            const PlanRun& run = plan_.runs[run_];
            const bool local_dense = run.localStride == run.size;
            const bool remote_dense = run.remoteStride == run.size;
            uint64_t size = run.size - inner_;
            if (local_dense && remote_dense) {
                size = (run.count - step_) * run.size - inner_;
            }
            size = std::min({size, end_ - at_, HostPeer::kMaxBytes - bytes});
            if (!add(run, size)) {
                break;
            }
            bytes += size;
            advance(run, size);
        }
        batch.local = local_;
        batch.localCount = localCount_;
        batch.remote = remote_;
        batch.remoteCount = remoteCount_;
        batch.regions = {regions_, regionCount_};
        batch.bytes = bytes;
        batch.mapped = mapped_;
        return bytes > 0;
    }

  private:
    static constexpr size_t kMaxRegions = 16;  // in one batch

    static bool follows(const iovec* vectors, size_t count, const char* begin) {
        return count > 0 &&
               static_cast<const char*>(vectors[count - 1].iov_base) + vectors[count - 1].iov_len ==
                   begin;
    }

    static void put(iovec* vectors, size_t& count, bool grows, char* begin, uint64_t size) {
        if (grows) {
            vectors[count - 1].iov_len += size;
        } else {
            vectors[count++] = {begin, size};
        }
    }

    // Makes the run's region the current one; false where the batch has no room for another.
    bool enter(const PlanRun& run) {
        if (regionCount_ > 0 && run.remoteRegion == lastRegion_) {
            return true;
        }
        const PlanRegion& region = plan_.remoteRegions[run.remoteRegion];
        const std::pair<uint64_t, uint32_t> entry{region.id, region.generation};
        for (size_t i = 0; i < regionCount_; ++i) {
            if (regions_[i] == entry) {
                lastRegion_ = run.remoteRegion;
                current_ = places_[i].get();
                return true;
            }
        }
        if (regionCount_ == kMaxRegions) {
            return false;
        }
        if (places_[regionCount_] == nullptr || placeOf_[regionCount_] != run.remoteRegion) {
            const RegionMapPtr& map = maps_[run.remoteRegion];
            places_[regionCount_] = map != nullptr ? map->mapped() : nullptr;
            placeOf_[regionCount_] = run.remoteRegion;
        }
        current_ = places_[regionCount_].get();
        regions_[regionCount_++] = entry;
        lastRegion_ = run.remoteRegion;
        return true;
    }

    // Adds up to `size` bytes, which it may cut; false where they do not fit into this batch.
    bool add(const PlanRun& run, uint64_t& size) {
        if (localCount_ == HostPeer::kMaxVectors || remoteCount_ == HostPeer::kMaxVectors ||
            !enter(run)) {
            return false;
        }
        auto* const local = reinterpret_cast<char*>(run.local + step_ * run.localStride + inner_);
        const uint64_t remote = run.remote + step_ * run.remoteStride + inner_;
        char* place = nullptr;
        if (current_ != nullptr) {
            uint64_t room = 0;
            place = current_->find(remote, room);
            size = std::min(size, room);
        }
        const bool mapped = place != nullptr;
        if (localCount_ == 0) {
            mapped_ = mapped;
        } else if (mapped != mapped_) {
            return false;
        }
        if (!mapped) {
            place = reinterpret_cast<char*>(remote);
        }
        const bool local_grows = follows(local_, localCount_, local);
        const bool remote_grows = follows(remote_, remoteCount_, place);
        if (mapped && !(local_grows && remote_grows)) {  // pairs
            local_[localCount_++] = {local, size};
            remote_[remoteCount_++] = {place, size};
            return true;
        }
        put(local_, localCount_, local_grows, local, size);
        put(remote_, remoteCount_, remote_grows, place, size);
        return true;
    }

    void advance(const PlanRun& run, uint64_t size) {
        at_ += size;
        const uint64_t inside = step_ * run.size + inner_ + size;
        step_ = inside / run.size;
        inner_ = inside % run.size;
        if (step_ == run.count) {
            step_ = 0;
            ++run_;
        }
    }

    const TransferPlan& plan_;
    const std::span<const RegionMapPtr> maps_;
    uint64_t at_;
    const uint64_t end_;
    size_t run_ = 0;
    uint64_t step_ = 0;
    uint64_t inner_ = 0;
    iovec local_[HostPeer::kMaxVectors];
    iovec remote_[HostPeer::kMaxVectors];
    std::pair<uint64_t, uint32_t> regions_[kMaxRegions];
    // Where these are mapped; kept from batch to batch, so that nothing is unmapped beneath one.
    MappedRegionPtr places_[kMaxRegions];
    uint32_t placeOf_[kMaxRegions] = {};
    const MappedRegion* current_ = nullptr;
    bool mapped_ = false;
    size_t localCount_ = 0;
    size_t remoteCount_ = 0;
    size_t regionCount_ = 0;
    uint32_t lastRegion_ = 0;
};

}  // namespace

Status hostCopy(HostPeer& host,
                const TransferPlan& plan,
                std::span<const RegionMapPtr> maps,
                uint64_t begin,
                uint64_t end,
                const Completion& completion,
                bool verify,
                SegmentFailure& failure) {
    if (begin >= end) {
        return {};
    }
    BatchBuilder batches(plan, maps, begin, end);
    HostPeer::Batch batch;
    HostVerifier verifier;
    for (uint64_t offset = begin; batches.next(batch); offset = batches.offset()) {
        if (completion.cancelRequested()) {
            return Status::canceled("canceled");
        }
        uint64_t moved = 0;
        Status status = host.transfer(plan.op, batch, moved);
        if (status.ok() && verify) {
            status = verifier.verify(host, batch, moved);
        }
        if (!status.ok()) {
            failure = {offset, end - offset, moved, status.systemErrno()};
            return status;
        }
    }
    return {};
}

}  // namespace nixl::peer
