// See plan_copy.h.
#include "device/plan_copy.h"

#include <algorithm>
#include <utility>

namespace nixl::device {

namespace {

constexpr uint64_t kHostBatchBytes = 64 << 20;  // what a cancel waits for
constexpr uint64_t kBatchBytes = 1 << 30;
constexpr size_t kBatchCopies = 1024;
constexpr unsigned kBatchesAtOnce = 2;  // of one GPU
constexpr uint64_t kSmallBytes = 64 << 10;
constexpr uint64_t kSmallSegments = 8;
constexpr uint64_t kFewSegments = 64;
constexpr unsigned kMaxRefusals = 16;  // copies that failed alone; then the rest fails with them

}  // namespace

std::vector<RemotePlace> placesOf(std::span<const PlanRegion> regions) {
    std::vector<RemotePlace> places;
    places.reserve(regions.size());
    for (const PlanRegion& region : regions) {
        places.push_back(
            {0, region.type == MemType::VRAM ? static_cast<int>(region.deviceId) : -1});
    }
    return places;
}

// Whether it touches nothing else.
static bool gpusOnly(const TransferPlan& plan) {
    const auto vram = [](const PlanRegion& region) { return region.type == MemType::VRAM; };
    return std::all_of(plan.localRegions.begin(), plan.localRegions.end(), vram) &&
           std::all_of(plan.remoteRegions.begin(), plan.remoteRegions.end(), vram);
}

bool touchesDevices(const TransferPlan& plan) {
    const auto vram = [](const PlanRegion& region) { return region.type == MemType::VRAM; };
    return std::any_of(plan.localRegions.begin(), plan.localRegions.end(), vram) ||
           std::any_of(plan.remoteRegions.begin(), plan.remoteRegions.end(), vram);
}

bool PlanCopy::isSmall(const TransferPlan& plan) {
    // Starting a copy between GPUs takes microseconds, however long it is.
    return gpusOnly(plan) ? plan.segments <= kFewSegments
                          : plan.bytes <= kSmallBytes && plan.segments <= kSmallSegments;
}

std::shared_ptr<PlanCopy> PlanCopy::create(Devices& devices,
                                           WorkPool& pool,
                                           const TransferPlan& plan,
                                           std::vector<RemotePlace> places,
                                           Ended ended) {
    return std::shared_ptr<PlanCopy>(
        new PlanCopy(devices, pool, plan, std::move(places), std::move(ended)));
}

PlanCopy::PlanCopy(Devices& devices,
                   WorkPool& pool,
                   const TransferPlan& plan,
                   std::vector<RemotePlace> places,
                   Ended ended)
    : devices_(devices),
      pool_(pool),
      plan_(plan),
      places_(std::move(places)),
      gpusOnly_(gpusOnly(plan)),
      ended_(std::move(ended)) {
    for (const PlanRun& run : plan.runs) {
        const int device = deviceOf(run);
        if (std::none_of(tracks_.begin(), tracks_.end(),
                         [&](const Track& one) { return one.device == device; })) {
            tracks_.push_back({device});
        }
    }
}

// The GPU that moves the bytes: the source's where it is one. Host to host goes by any.
int PlanCopy::deviceOf(const PlanRun& run) const {
    const PlanRegion& own = plan_.localRegions[run.localRegion];
    const int local = own.type == MemType::VRAM ? static_cast<int>(own.deviceId) : -1;
    const int remote = places_[run.remoteRegion].device;
    const bool read = plan_.op == OpType::READ;
    const int source = read ? remote : local;
    return std::max(source >= 0 ? source : (read ? local : remote), 0);
}

void PlanCopy::start(bool here) {
    size_t count = 0;
    {
        const MutexLock lock(mutex_);
        count = tracks_.size();
    }
    if (count == 0) {
        endIfQuiet();
    }
    for (size_t index = 0; index < count; ++index) {
        if (here) {
            feed(index);
        } else {
            pool_.run([self = shared_from_this(), index] { self->feed(index); });
        }
    }
}

void PlanCopy::poll() {
    std::vector<std::shared_ptr<DeviceBatch>> running;
    {
        const MutexLock lock(mutex_);
        running = batches_;
    }
    for (const auto& batch : running) {
        batch->poll();
    }
}

void PlanCopy::stop() {
    stop_.store(true, std::memory_order_release);
}

// Starts batches of one GPU up to the limit. One thread at a time.
void PlanCopy::feed(size_t index) {
    for (;;) {
        auto batch = std::make_shared<Batch>();
        {
            const MutexLock lock(mutex_);
            Track& track = tracks_[index];
            if (track.busy || track.done || track.running >= kBatchesAtOnce) {
                return;
            }
            if (stop_.load(std::memory_order_acquire)) {
                track.done = true;
                dropped_ = true;
            } else if (!cut(track, *batch)) {
                track.done = true;
            }
            if (!track.done) {
                track.busy = true;
                ++track.running;
            }
        }
        if (batch->copies.empty()) {
            return endIfQuiet();
        }
        launch(index, batch);
        const MutexLock lock(mutex_);
        tracks_[index].busy = false;
    }
}

// The next copies of a track; false where it is at its end.
bool PlanCopy::cut(Track& track, Batch& batch) const {
    const bool read = plan_.op == OpType::READ;
    const uint64_t limit = gpusOnly_ ? kBatchBytes : kHostBatchBytes;
    uint64_t bytes = 0;
    while (track.run < plan_.runs.size() && bytes < limit && batch.copies.size() < kBatchCopies) {
        const PlanRun& run = plan_.runs[track.run];
        if (deviceOf(run) != track.device) {
            ++track.run;
            continue;
        }
        const bool dense = run.localStride == run.size && run.remoteStride == run.size;
        const uint64_t begin = track.step * run.size + track.inner;  // in bytes of the run
        const uint64_t left = dense ? run.count * run.size - begin : run.size - track.inner;
        const uint64_t size = std::min(left, limit - bytes);
        const uint64_t local = run.local + track.step * run.localStride + track.inner;
        const uint64_t remote = run.remote + track.step * run.remoteStride + track.inner +
                                places_[run.remoteRegion].offset;
        if (size > 0) {
            batch.copies.push_back({read ? local : remote, read ? remote : local, size});
            batch.planOffsets.push_back(run.planOffset + begin);
        }
        bytes += size;
        const uint64_t inside = begin + size;
        track.step = run.size == 0 ? run.count : inside / run.size;
        track.inner = run.size == 0 ? 0 : inside % run.size;
        if (track.step >= run.count) {
            ++track.run;
            track.step = track.inner = 0;
        }
    }
    return !batch.copies.empty();
}

void PlanCopy::launch(size_t index, const std::shared_ptr<Batch>& batch) {
    int device = 0;
    {
        const MutexLock lock(mutex_);
        device = tracks_[index].device;
    }
    Result<std::shared_ptr<DeviceBatch>> started = devices_.copy(batch->copies, device);
    if (!started.ok()) {
        {
            const MutexLock lock(mutex_);
            failed(*batch, 0, batch->copies.size(), started.status());
            --tracks_[index].running;
        }
        return endIfQuiet();
    }
    batch->running = std::move(started).value();
    {
        const MutexLock lock(mutex_);
        batches_.push_back(batch->running);
    }
    batch->running->then([self = shared_from_this(), index, batch] { self->ended(index, batch); });
}

void PlanCopy::failed(const Batch& batch, size_t begin, size_t end, const Status& why) {
    if (status_.ok()) {
        status_ = why;
    }
    for (size_t i = begin; i < end; ++i) {
        const uint64_t offset = batch.planOffsets[i];
        SegmentFailure* const last = failures_.empty() ? nullptr : &failures_.back();
        if (last != nullptr && last->planOffset + last->size == offset) {
            last->size += batch.copies[i].size;
        } else {
            failures_.push_back({offset, batch.copies[i].size, 0, 0});
        }
    }
}

// On the thread that saw the end: it must not start copies itself.
void PlanCopy::ended(size_t index, const std::shared_ptr<Batch>& batch) {
    const Status status = batch->running->wait();
    const size_t good = batch->running->copied();
    const size_t count = batch->copies.size();
    {
        const MutexLock lock(mutex_);
        std::erase(batches_, batch->running);
        if (!status.ok()) {
            // One that was refused does not keep the others from being copied.
            const bool alone = ++refusals_ < kMaxRefusals;
            const size_t end = alone ? std::min(good + 1, count) : count;
            failed(*batch, good, end, status);
            if (end < count) {
                batch->copies.erase(batch->copies.begin(),
                                    batch->copies.begin() + static_cast<ptrdiff_t>(end));
                batch->planOffsets.erase(batch->planOffsets.begin(),
                                         batch->planOffsets.begin() + static_cast<ptrdiff_t>(end));
            } else {
                batch->copies.clear();
            }
        } else {
            batch->copies.clear();
        }
        if (batch->copies.empty()) {
            --tracks_[index].running;
        }
    }
    if (!batch->copies.empty()) {
        pool_.run([self = shared_from_this(), index, batch] { self->launch(index, batch); });
        return;
    }
    bool more = false;
    {
        const MutexLock lock(mutex_);
        more = !tracks_[index].done && !tracks_[index].busy;
    }
    if (more) {
        pool_.run([self = shared_from_this(), index] { self->feed(index); });
    } else {
        endIfQuiet();
    }
}

void PlanCopy::endIfQuiet() {
    Ended call;
    Status status;
    std::vector<SegmentFailure> failures;
    {
        const MutexLock lock(mutex_);
        const bool quiet = std::all_of(tracks_.begin(), tracks_.end(), [](const Track& one) {
            return one.done && !one.busy && one.running == 0;
        });
        if (!quiet) {
            return;
        }
        call = std::exchange(ended_, nullptr);
        status = status_;
        failures = std::move(failures_);
        if (status.ok() && dropped_) {
            status = Status::canceled("canceled");
        }
    }
    if (call) {
        std::sort(failures.begin(), failures.end(), [](const auto& one, const auto& other) {
            return one.planOffset < other.planOffset;
        });
        call(std::move(status), std::move(failures));
    }
}

}  // namespace nixl::device
