// See parts.h.
#include "lanes/stream/parts.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace nixl::peer {

namespace {

std::string encoded(const Request& request) {
    base::ByteWriter out;
    request.encode(out);
    return out.take();
}

}  // namespace

PreparedRequest::PreparedRequest(const Request& request,
                                 const Key& grant_key,
                                 std::vector<MemoryRun> this_side,
                                 uint64_t plan_offset)
    : op(request.op),
      flags(request.flags),
      grant(request.grant),
      key(grant_key),
      bytes(request.bytes),
      planOffset(plan_offset),
      frame(encoded(request)),
      local(std::move(this_side)) {}

StreamParts::StreamParts(const TransferPlan& plan, GrantsPtr grants, bool checksum)
    : plan_(plan),
      grants_(std::move(grants)),
      checksum_(checksum),
      kept_(plan.runs.size() <= kMaxKeptRuns && plan.bytes / kPartBytes <= kMaxKeptRuns) {}

bool StreamParts::more(size_t index) {
    const MutexLock lock(mutex_);
    return index < cut_ || run_ < plan_.runs.size();
}

PreparedRequestPtr StreamParts::at(size_t index) {
    const MutexLock lock(mutex_);
    if (index < requests_.size()) {
        return requests_[index];
    }
    PreparedRequestPtr made = cut();
    ++cut_;
    if (kept_) {
        requests_.push_back(made);
    }
    return made;
}

PreparedRequestPtr StreamParts::cut() {
    Request request;
    Key key{};
    std::vector<MemoryRun> here;
    request.op = plan_.op;
    request.flags = checksum_ ? kRequestChecksum : 0;
    std::unordered_map<uint32_t, uint32_t> regions;  // plan's index to the request's
    while (run_ < plan_.runs.size() && request.bytes < kPartBytes &&
           request.runs.size() < kPartRuns) {
        const PlanRun& run = plan_.runs[run_];
        const auto [region, fresh] =
            regions.try_emplace(run.remoteRegion, static_cast<uint32_t>(regions.size()));
        if (fresh) {
            const PlanRegion& there = plan_.remoteRegions[run.remoteRegion];
            const Grant& grant = grants_->of(there.id);
            if (regions.size() > kMaxRequestRegions ||
                (regions.size() > 1 && grant.id != request.grant)) {
                break;
            }
            request.grant = grant.id;
            key = grant.key;
            request.regions.push_back({there.id, there.generation});
        }
        const uint64_t room = kPartBytes - request.bytes;
        MemoryRun local{run.local + step_ * run.localStride + inner_, 0, run.localStride, 1, 0};
        MemoryRun remote{run.remote + step_ * run.remoteStride + inner_, 0, run.remoteStride, 1,
                         region->second};
        if (inner_ != 0 || run.size > room) {  // a piece of one segment
            local.size = remote.size = std::min(run.size - inner_, room);
            inner_ += local.size;
            if (inner_ == run.size) {
                inner_ = 0;
                ++step_;
            }
        } else {  // as many whole segments as fit
            local.size = remote.size = run.size;
            local.count = remote.count = std::min(run.count - step_, room / run.size);
            step_ += local.count;
        }
        if (step_ == run.count) {
            step_ = 0;
            ++run_;
        }
        request.bytes += local.bytes();
        here.push_back(local);
        request.runs.push_back(remote);
    }
    const uint64_t begin = std::exchange(offset_, offset_ + request.bytes);
    return std::make_shared<const PreparedRequest>(request, key, std::move(here), begin);
}

}  // namespace nixl::peer
