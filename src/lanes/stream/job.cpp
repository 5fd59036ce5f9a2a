// See job.h.
#include "lanes/stream/job.h"

#include <utility>

namespace nixl::peer {

namespace {

std::atomic<uint64_t> next_request{1};

}  // namespace

StreamJob::StreamJob(uint64_t bytes,
                     std::shared_ptr<StreamParts> parts,
                     std::shared_ptr<StreamJobOwner> owner)
    : bytes_(bytes), bytesLeft_(bytes), parts_(std::move(parts)), owner_(std::move(owner)) {}

std::optional<StreamPart> StreamJob::nextPart() {
    const MutexLock lock(mutex_);
    if (!more_.load(std::memory_order_relaxed)) {
        return std::nullopt;
    }
    StreamPart part;
    part.request = parts_->at(taken_++);
    part.id = next_request.fetch_add(1, std::memory_order_relaxed);
    part.owner = shared_from_this();
    offset_ += part.request->bytes;
    bytesLeft_.fetch_sub(part.request->bytes, std::memory_order_relaxed);
    ++underWay_;
    if (!parts_->more(taken_)) {
        more_.store(false, std::memory_order_release);
    }
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
    std::shared_ptr<StreamJobOwner> owner;
    {
        const MutexLock lock(mutex_);
        if (ended_ || underWay_ != 0 || more_.load(std::memory_order_relaxed)) {
            return;
        }
        ended_ = true;
        if (!status_.ok() && offset_ < bytes_) {  // what was never tried
            failures_.push_back({offset_, bytes_ - offset_, 0, status_.systemErrno()});
        }
        parts_ = nullptr;
        status = status_;
        failures.swap(failures_);
        owner = std::move(owner_);
    }
    owner->streamed(std::move(status), std::move(failures));
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
    std::shared_ptr<StreamJobOwner> owner;
    {
        const MutexLock lock(mutex_);
        more_.store(false, std::memory_order_release);
        if (ended_) {
            return;
        }
        ended_ = true;
        parts_ = nullptr;
        owner = std::move(owner_);
    }
    owner->streamed(why, {});
}

}  // namespace nixl::peer
