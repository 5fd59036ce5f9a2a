// Jobs and their parts; see job.h.
#include "job.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <sched.h>

#include "nixl/user_memory.h"

#include "inline_queue.h"

namespace nixl::posix {

namespace {

constexpr auto kPatience = std::chrono::microseconds(8);  // of a caller who polls
constexpr size_t kMaxFailures = 1 << 20;  // of one post; the rest is summed up in the last

std::string failureText(const char* plugin,
                        const IoRequest& request,
                        int error,
                        const std::string& detail) {
    const uint64_t done = request.done - request.unitStart;
    std::string text = std::string(plugin) + ": ";
    text += request.op == IoOp::WRITE ? "write " : "read ";
    text += request.file->label() + " at " + std::to_string(request.offset - done) + ": " +
            std::to_string(done) + " of " + std::to_string(request.unitSize) + " bytes, ";
    text += error == 0 ? "end of file" : errnoText(error);
    if (error == EBADF) {
        text += " (closed, or not open for this direction)";
    } else if (error == ESTALE) {
        text += request.file->callerOwned()
                    ? " (the number belongs to another file than the registered one)"
                    : " (another file has taken its name since it was registered)";
    } else if (error == ENOENT) {
        text += " (removed since it was registered)";
    }
    return detail.empty() ? text : text + " (" + detail + ")";
}

}  // namespace

void Shared::wakeParked() {
    if (parked.load() > 0) {
        queue->wake();
        if (pool != queue) {
            pool->wake();
        }
    }
}

namespace {

// Writes through the page cache hold the file's lock while they copy, so two threads on one file
// are slower than one. Block devices have no such lock.
bool writesOneFile(const TransferPlan& plan) {
    const auto file_of = [](const PlanRegion& region) {
        return static_cast<const File*>(region.memory);
    };
    return plan.op == OpType::WRITE && !plan.remoteRegions.empty() &&
           std::all_of(
               plan.remoteRegions.begin(), plan.remoteRegions.end(), [&](const PlanRegion& region) {
                   return file_of(region)->sameRegularFile(*file_of(plan.remoteRegions.front()));
               });
}

}  // namespace

Part::Part(Job& job,
           const TransferPlan& plan,
           Route route,
           BuildLimits limits,
           Shared& shared,
           Scheduler& scheduler)
    : job_(job),
      builder_(plan, route, limits, shared.bounces),
      scheduler_(scheduler),
      single_(route == Route::POOL && writesOneFile(plan)) {}

void Part::rewind(uint64_t epoch) {
    builder_.rewind(epoch);
    pending_ = 1;
}

void Part::start() {
    scheduler_.add(*this);
}

void Part::begin(std::span<IoRequest*> entries, const std::function<void(size_t)>& submit) {
    size_t count = 0;
    uint64_t bytes = 0;
    const Filled filled = fill(entries, count, entries.size(), bytes, UINT64_MAX);
    if (count > 0) {
        submit(count);
    }
    if (filled == Filled::END) {
        drop();
    } else {
        scheduler_.add(*this);
    }
}

namespace {

constexpr uint64_t kLightBytes = 256 << 10;

// Few bytes between aligned host memory and files that are open: no copying, nothing to wait for.
bool isLight(const TransferPlan& plan, const Shared& shared) {
    uint64_t places = 0;
    uint32_t align = 1;
    for (const PlanRun& run : plan.runs) {
        places |= run.local | (run.count > 1 ? run.localStride : 0);
    }
    for (const PlanRegion& region : plan.remoteRegions) {
        const File& file = *static_cast<const File*>(region.memory);
        align = std::max(align, file.memoryAlign());
        if (!file.staysOpen()) {
            return false;
        }
    }
    const auto on_host = [](const PlanRegion& region) { return region.type == MemType::DRAM; };
    return shared.small != nullptr && plan.bytes <= kLightBytes &&
           plan.segments <= InlineQueue::kRequests && places % align == 0 &&
           std::all_of(plan.localRegions.begin(), plan.localRegions.end(), on_host);
}

}  // namespace

void Part::drop() {
    const uint64_t before = pending_.fetch_sub(1);
    if (before == 1) {
        job_.partDone();
    } else if (before == (kHeld | 2)) {  // only the place is left, and nobody else has it
        pending_ = 1;
        scheduler_.push(*this);
    }
}

// Fills the bounce buffer of a write; false when that failed, which is told then.
bool Part::gather(IoRequest& request) {
    if (request.bounce == nullptr) {
        return true;
    }
    scheduler_.prepareBounce(request);
    request.fixedBuffer = request.bounce->fixedBuffer;
    if (request.op == IoOp::READ) {
        return true;
    }
    if (request.device < 0) {
        if (!copyFromUser(request.bounce->data, request.user, request.length)) {
            job_.fail(request, EFAULT);
            scheduler_.giveBack(request);
            return false;
        }
        return true;
    }
    const std::string reason =
        copyFromGpu(scheduler_.devices(), request.device, request.bounce->data, request.user);
    if (reason.empty()) {
        return true;
    }
    job_.fail(request, EIO, reason);
    scheduler_.giveBack(request);
    return false;
}

Part::Filled Part::fill(
    std::span<IoRequest*> entries, size_t& count, size_t limit, uint64_t& bytes, uint64_t budget) {
    while (count < limit && bytes < budget) {
        if (job_.canceled()) {
            job_.dropped();
            return Filled::END;
        }
        IoRequest& request = *entries[count];
        int error = 0;
        switch (builder_.next(request, error)) {
            case RequestBuilder::Outcome::END:
                return Filled::END;
            case RequestBuilder::Outcome::WAIT:
                return Filled::WAIT;
            case RequestBuilder::Outcome::FAILED:
                request.unitSize = request.total;
                job_.fail(request, error);
                request.reset();
                break;
            case RequestBuilder::Outcome::READY:
                request.part = this;
                request.unitSize = request.total;
                if (!gather(request)) {
                    break;
                }
                pending_.fetch_add(1);
                ++count;
                bytes += request.length;
                if (builder_.exhausted()) {
                    return Filled::END;
                }
                break;
        }
    }
    return Filled::MORE;
}

Job::Job(const TransferPlan& plan,
         BuildLimits queue_limits,
         BuildLimits pool_limits,
         Shared& shared)
    : plan_(plan),
      shared_(shared),
      queuePart_(*this, plan, Route::QUEUE, queue_limits, shared, *shared.queue),
      poolPart_(*this, plan, Route::POOL, pool_limits, shared, *shared.pool) {
    std::vector<File*> files;
    for (const PlanRegion& region : plan.remoteRegions) {
        files.push_back(static_cast<File*>(region.memory));
    }
    std::sort(files.begin(), files.end());
    files.erase(std::unique(files.begin(), files.end()), files.end());
    for (File* file : files) {
        if (file->callerOwned()) {
            holds_.add(file);
        }
    }
    refusalsSeen_ = shared.refusals;
    epoch_ = shared.epoch;
    usesQueue_ = usesRoute(plan, Route::QUEUE, epoch_);
    usesPool_ = usesRoute(plan, Route::POOL, epoch_);
    light_ = isLight(plan, shared);
}

Status Job::holdFiles() {
    return holds_.take();
}

bool Job::light() const {
    const auto cannot_pin = [](const PlanRegion& region) {
        return region.memory != nullptr && static_cast<const Memory*>(region.memory)->cannotPin;
    };
    return light_ && usesQueue_ && !usesPool_ &&
           std::none_of(plan_.localRegions.begin(), plan_.localRegions.end(), cannot_pin);
}

// A caller who polls may be holding the very processor that an engine thread waits for: at once
// where that thread was last seen here, else after some time.
void Job::help() const {
    if (light() && shared_.small->busy()) {
        shared_.small->progress();
        return;
    }
    if ((buffered() && shared_.pool->engine()->lookoutCpu() == sched_getcpu()) ||
        std::chrono::steady_clock::now() - posted_ > kPatience) {
        sched_yield();
    }
}

void Job::start(CompletionPtr completion) {
    posted_ = std::chrono::steady_clock::now();
    canceled_ = false;
    dropped_ = false;
    failures_.clear();
    firstFailure_.clear();
    firstErrno_ = 0;
    completion_ = std::move(completion);
    if (completion_->cancelRequested()) {
        canceled_ = true;
    }
    const uint64_t refusals = shared_.refusals;
    epoch_ = ++shared_.epoch;
    if (refusals != refusalsSeen_) {
        refusalsSeen_ = refusals;
        usesQueue_ = usesRoute(plan_, Route::QUEUE, epoch_);
        usesPool_ = usesRoute(plan_, Route::POOL, epoch_);
    }
    // Direct writes first: see kPage in file.h.
    const bool later = usesQueue_ && usesPool_ && plan_.op == OpType::WRITE;
    poolLater_ = later;
    const bool queue = usesQueue_;
    const bool pool = usesPool_ && !later;
    // Each part counts, and this call, so that the job outlives it.
    partsLeft_ = 1 + (queue ? 1 : 0) + (pool ? 1 : 0);
    const bool light = this->light();
    if (pool) {
        poolPart_.rewind(epoch_);
    }
    if (queue) {
        queuePart_.rewind(epoch_);
        if (!light || !shared_.small->post(queuePart_)) {
            queuePart_.start();
        }
    }
    if (pool) {
        poolPart_.start();
    }
    partDone();
}

void Job::partDone() {
    if (partsLeft_.fetch_sub(1) != 1) {
        return;
    }
    if (poolLater_.exchange(false)) {
        partsLeft_ = 1;
        poolPart_.rewind(epoch_);
        poolPart_.start();
        return;
    }
    finish();
}

void Job::cancel() {
    canceled_ = true;
    shared_.wakeParked();
}

void Job::fail(const IoRequest& request, int error, const std::string& detail) {
    const SegmentFailure failure{request.planOffset + request.unitStart, request.unitSize,
                                 request.done - request.unitStart, error};
    const std::lock_guard lock(mutex_);
    if (firstFailure_.empty() || failure.planOffset < failures_.front().planOffset) {
        firstFailure_ = failureText(shared_.plugin, request, error, detail);
        firstErrno_ = error;
        failures_.insert(failures_.begin(), failure);
        return;
    }
    if (failures_.size() < kMaxFailures) {
        failures_.push_back(failure);
        return;
    }
    // Far beyond what anybody reads: everything from here on counts as failed.
    SegmentFailure& last = failures_.back();
    const uint64_t begin = std::min(last.planOffset, failure.planOffset);
    const uint64_t end = std::max(last.planOffset + last.size, failure.planOffset + failure.size);
    last = {begin, end - begin, 0, last.systemErrno};
}

void Job::finish() {
    // The completion's end is the last access: the owner may destroy or post again at once.
    const CompletionPtr completion = std::move(completion_);
    if (!holds_.empty()) {
        holds_.release();
        shared_.wakeParked();
    }
    std::vector<SegmentFailure> failures = std::move(failures_);
    std::string text = std::move(firstFailure_);
    const int error = firstErrno_;
    if (dropped_.load()) {
        completion->cancel();
    } else if (failures.empty()) {
        completion->succeed();
    } else {
        if (failures.size() > 1) {
            text += " (and " + std::to_string(failures.size() - 1) + " more failures)";
        }
        completion->fail(Status::backend(std::move(text), error), std::move(failures));
    }
}

}  // namespace nixl::posix
