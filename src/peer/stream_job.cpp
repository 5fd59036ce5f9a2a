// See stream_job.h.
#include "peer/stream_job.h"

#include <algorithm>
#include <unordered_map>

namespace nixl::peer {

namespace {

std::atomic<uint64_t> next_request{1};

}  // namespace

StreamJob::StreamJob(const TransferPlan& plan, GrantsPtr grants, bool checksum, Ended ended)
    : plan_(&plan),
      grants_(std::move(grants)),
      checksum_(checksum),
      bytesLeft_(plan.bytes),
      endedCall_(std::move(ended)) {}

StreamPartPtr StreamJob::nextPart() {
    const MutexLock lock(mutex_);
    if (!more_.load(std::memory_order_relaxed)) {
        return nullptr;
    }
    auto part = std::make_unique<StreamPart>();
    Request& request = part->request;
    request.op = plan_->op;
    request.id = next_request.fetch_add(1, std::memory_order_relaxed);
    request.flags = checksum_ ? kRequestChecksum : 0;
    part->planOffset = offset_;
    part->owner = this;
    std::unordered_map<uint32_t, uint32_t> regions;  // plan's index to the request's
    while (run_ < plan_->runs.size() && request.bytes < kPartBytes &&
           request.runs.size() < kPartRuns) {
        const PlanRun& run = plan_->runs[run_];
        const auto [region, fresh] =
            regions.try_emplace(run.remoteRegion, static_cast<uint32_t>(regions.size()));
        if (fresh) {
            const PlanRegion& there = plan_->remoteRegions[run.remoteRegion];
            const Grant& grant = grants_->of(there.id);
            if (regions.size() > kMaxRequestRegions ||
                (regions.size() > 1 && grant.id != request.grant)) {
                break;
            }
            request.grant = grant.id;
            part->grant = grant.key;
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
        part->local.push_back(local);
        request.runs.push_back(remote);
    }
    offset_ += request.bytes;
    bytesLeft_.fetch_sub(request.bytes, std::memory_order_relaxed);
    ++underWay_;
    if (run_ == plan_->runs.size()) {
        more_.store(false, std::memory_order_release);
    }
    part->done = [self = shared_from_this()](Status status, const SegmentFailure& failure) {
        self->partDone(std::move(status), failure);
    };
    return part;
}

void StreamJob::partDone(Status status, const SegmentFailure& failure) {
    {
        const MutexLock lock(mutex_);
        --underWay_;
        if (!status.ok()) {
            if (status.code() != ErrorCode::CANCELED && !ended_) {
                failures_.push_back(failure);
            }
            if (status_.ok()) {
                status_ = std::move(status);
            }
            more_.store(false, std::memory_order_release);  // the rest would fail alike
        }
    }
    endIfQuiet();
}

void StreamJob::endIfQuiet() {
    Status status;
    std::vector<SegmentFailure> failures;
    Ended call;
    {
        const MutexLock lock(mutex_);
        if (ended_ || underWay_ != 0 || more_.load(std::memory_order_relaxed)) {
            return;
        }
        ended_ = true;
        if (!status_.ok() && offset_ < plan_->bytes) {  // what was never tried
            failures_.push_back({offset_, plan_->bytes - offset_, 0, status_.systemErrno()});
        }
        plan_ = nullptr;
        status = status_;
        failures.swap(failures_);
        call = std::move(endedCall_);
    }
    call(std::move(status), std::move(failures));
}

void StreamJob::stop(const Status& why) {
    {
        const MutexLock lock(mutex_);
        more_.store(false, std::memory_order_release);
        if (status_.ok()) {
            status_ = why;
        }
    }
    endIfQuiet();
}

void StreamJob::abandon(const Status& why) {
    Ended call;
    {
        const MutexLock lock(mutex_);
        more_.store(false, std::memory_order_release);
        if (ended_) {
            return;
        }
        ended_ = true;
        plan_ = nullptr;
        call = std::move(endedCall_);
    }
    call(why, {});
}

}  // namespace nixl::peer
