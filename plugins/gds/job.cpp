// Cutting a plan into requests, and collecting their ends; see job.h.
#include "job.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace nixl::gds {

namespace {

constexpr size_t kMaxFailures = 10'000;
constexpr long kNapNanoseconds = 100'000;
constexpr auto kSpin = std::chrono::microseconds(30);
constexpr int kLooks = 32;  // at the counter of pushes between two looks at the clock

// Tells the processor that this is a waiting loop.
void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Status Job::check(const TransferPlan& plan) {
    for (const PlanRegion& region : plan.localRegions) {
        if (region.type != MemType::DRAM && region.type != MemType::VRAM) {
            return Status::notSupported(std::string("the memory side is ") +
                                        memTypeName(region.type) +
                                        "; only DRAM and VRAM are supported");
        }
    }
    for (const PlanRegion& region : plan.remoteRegions) {
        if (region.type != MemType::FILE) {
            return Status::notSupported(std::string("the storage side is ") +
                                        memTypeName(region.type) + "; only FILE is supported");
        }
        const File& file = *static_cast<const File*>(region.memory);
        if (const std::string why = file.refuses(plan.op); !why.empty()) {
            return Status::invalidParam((plan.op == OpType::WRITE ? "write " : "read ") +
                                        file.label() + ": " + why);
        }
    }
    for (const PlanRun& run : plan.runs) {
        const uint64_t last = run.remote + (run.count - 1) * run.remoteStride;
        const uint64_t highest = std::max(run.remote, last);
        if (highest > INT64_MAX || run.size > INT64_MAX - highest) {
            return Status::invalidParam("offset " + std::to_string(highest) + " + " +
                                        std::to_string(run.size) +
                                        " bytes is beyond any file's end (2^63)");
        }
    }
    return {};
}

void Job::start(CompletionPtr completion, uint64_t post) {
    completion_ = std::move(completion);
    post_ = post;
    cursor_ = SegmentCursor(plan_.runs);
    segment_ = {};
    within_ = 0;
    segmentsLeft_ = plan_.segments;
    canceled_ = false;
    dropped_ = false;
    bytesDone_ = 0;
    refs_ = 1;
    running_ = 1;
}

void Job::nap() {
    const timespec most{0, kNapNanoseconds};
    syscall(SYS_futex, &running_, FUTEX_WAIT_PRIVATE, 1, &most, nullptr, 0);
}

bool Job::draw(std::vector<Request>& out, const DrawLimits& limits) {
    const uint64_t share = segmentsLeft_ / (2ULL * limits.sharers);
    const size_t most =
        limits.sharers > 1 ? std::clamp<size_t>(share, 1, limits.requests) : limits.requests;
    uint64_t bytes = 0;
    while (!canceled_ && !completion_->cancelRequested()) {
        while (within_ == segment_.size) {
            if (!cursor_.next(segment_)) {
                segment_ = {};
                within_ = 0;
                return false;
            }
            within_ = 0;
            segmentsLeft_ -= segmentsLeft_ > 0 ? 1 : 0;
        }
        const auto* memory =
            static_cast<const Memory*>(plan_.localRegions[segment_.localRegion].memory);
        const int device = memory != nullptr ? memory->device : -1;
        if (out.size() >= most || bytes >= limits.bytes ||
            (!out.empty() && out.front().device != device)) {
            return true;
        }
        Request request;
        request.job = this;
        request.file = static_cast<File*>(plan_.remoteRegions[segment_.remoteRegion].memory);
        request.memory = segment_.local + within_;
        request.offset = segment_.remote + within_;
        request.size = std::min(segment_.size - within_, maxRequest_);
        request.planOffset = segment_.planOffset + within_;
        request.device = device;
        within_ += request.size;
        bytes += request.size;
        refs_.fetch_add(1, std::memory_order_relaxed);
        out.push_back(request);
    }
    dropped_ = true;
    return false;
}

Job::Opened Job::open(Request& request, bool wait) {
    if (const int error = request.file->checkName(post_); error != 0) {
        fail(request, errnoText(error), error);
        return Opened::OVER;
    }
    Result<void*> handle = request.file->acquire(wait);
    if (!handle.ok()) {
        fail(request, handle.status().message(), handle.status().systemErrno());
        return Opened::OVER;
    }
    request.handle = handle.value();
    return request.handle != nullptr ? Opened::YES : Opened::LATER;
}

void Job::succeed(Request& request) {
    bytesDone_.fetch_add(request.size, std::memory_order_relaxed);
    end(request);
}

void Job::fail(Request& request, const std::string& cause, int error) {
    {
        const std::lock_guard lock(mutex_);
        if (failures_.empty() || request.planOffset < failures_.front().planOffset) {
            firstFailure_ = name_ + (plan_.op == OpType::WRITE ? ": write " : ": read ") +
                            request.file->label() + ": offset " + std::to_string(request.offset) +
                            " + " + std::to_string(request.size) + " bytes: " + cause;
            firstErrno_ = error;
        }
        const SegmentFailure failure{request.planOffset, request.size, request.done, error};
        if (failures_.size() < kMaxFailures) {
            failures_.push_back(failure);
        } else {  // far beyond what anybody reads: everything from here on counts as failed
            SegmentFailure& last = failures_.back();
            const uint64_t begin = std::min(last.planOffset, failure.planOffset);
            const uint64_t until =
                std::max(last.planOffset + last.size, failure.planOffset + failure.size);
            last = {begin, until - begin, 0, last.systemErrno};
        }
    }
    end(request);
}

void Job::end(Request& request) {
    if (request.handle != nullptr) {
        request.handle = nullptr;
        request.file->release();
    }
    unref();
}

void Job::unref() {
    if (refs_.fetch_sub(1) == 1) {
        finish();
    }
}

void Job::finish() {
    // The completion's end is the last access: the owner may destroy or post again at once.
    const CompletionPtr completion = std::move(completion_);
    std::vector<SegmentFailure> failures = std::move(failures_);
    failures_.clear();
    std::string text = std::move(firstFailure_);
    const int error = firstErrno_;
    running_ = 0;
    syscall(SYS_futex, &running_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    if (dropped_.load()) {
        completion->cancel();
        return;
    }
    if (failures.empty()) {
        completion->succeed();
        return;
    }
    std::sort(failures.begin(), failures.end(),
              [](const SegmentFailure& a, const SegmentFailure& b) {
                  return a.planOffset < b.planOffset;
              });
    if (failures.size() > 1) {
        text += " (and " + std::to_string(failures.size() - 1) + " more failures)";
    }
    completion->fail(Status::backend(std::move(text), error), std::move(failures));
}

void JobQueue::push(Job* job) {
    {
        const std::lock_guard lock(mutex_);
        jobs_.push_back(job);
    }
    ++pushes_;
    if (!spinning_.load()) {
        changed_.notify_one();
    }
}

// Waking a thread costs more than a small request: one idle thread looks out for the next post
// for a moment.
bool JobQueue::spin() {
    if (spinning_.exchange(true)) {
        return false;
    }
    const uint64_t seen = pushes_.load();
    const auto end = std::chrono::steady_clock::now() + kSpin;
    bool pushed = false;
    do {
        for (int i = 0; i < kLooks && !pushed; ++i) {
            relax();
            pushed = pushes_.load(std::memory_order_relaxed) != seen;
        }
    } while (!pushed && std::chrono::steady_clock::now() < end);
    spinning_ = false;
    return true;
}

bool JobQueue::draw(std::vector<Request>& out, const DrawLimits& limits) {
    out.clear();
    std::unique_lock lock(mutex_);
    if (jobs_.empty() && !stop_) {
        lock.unlock();
        spin();
        lock.lock();
    }
    changed_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
    if (jobs_.empty()) {
        return false;
    }
    Job* const job = jobs_.front();
    jobs_.pop_front();
    const bool more = !stop_ && job->draw(out, limits);
    if (stop_) {
        job->cancel();
        (void)job->draw(out, limits);
    }
    if (more) {
        jobs_.push_back(job);
    }
    const bool wake = !jobs_.empty();
    lock.unlock();
    if (wake) {
        changed_.notify_one();
    }
    if (!more) {
        job->drawn();
    }
    return true;
}

void JobQueue::stop() {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
}

void perform(const CuFile& library, Request& request) {
    const bool write = request.job->op() == OpType::WRITE;
    while (request.done < request.size) {
        auto* const memory = reinterpret_cast<void*>(request.memory + request.done);
        const uint64_t left = request.size - request.done;
        const auto offset = static_cast<off_t>(request.offset + request.done);
        errno = 0;
        const ssize_t moved = write ? library.write(request.handle, memory, left, offset, 0)
                                    : library.read(request.handle, memory, left, offset, 0);
        if (moved < 0) {
            const int error = errno;
            if (moved == -1 && error == EINTR) {
                continue;
            }
            request.job->fail(request,
                              (write ? "cuFileWrite: " : "cuFileRead: ") + cuFileText(moved, error),
                              moved == -1 ? error : EIO);
            return;
        }
        if (moved == 0 || static_cast<uint64_t>(moved) > left) {
            request.job->fail(
                request,
                moved != 0 ? "cuFile claims more bytes than were asked for"
                : write    ? "cuFileWrite wrote nothing"
                           : "the file ends after " + std::to_string(request.done) + " of them",
                0);
            return;
        }
        request.done += static_cast<uint64_t>(moved);
    }
    request.job->succeed(request);
}

}  // namespace nixl::gds
