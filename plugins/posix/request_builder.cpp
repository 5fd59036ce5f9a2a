// Merging, splitting and routing; see request_builder.h.
#include "request_builder.h"

#include <algorithm>
#include <cerrno>

#include <unistd.h>

namespace nixl::posix {

Memory::~Memory() {
    if (getpid() != process) {
        return;  // forked: the engine's thread is the parent's
    }
    for (const int index : fixedBuffers) {
        if (index >= 0) {
            engine->unregisterBuffer(index);
        }
    }
}

RequestBuilder::RequestBuilder(const TransferPlan& plan,
                               Route route,
                               BuildLimits limits,
                               BouncePool& bounces)
    : plan_(plan), route_(route), limits_(limits), bounces_(bounces), cursor_(plan.runs) {}

void RequestBuilder::rewind(uint64_t epoch) {
    cursor_ = SegmentCursor(plan_.runs);
    left_ = {};
    ended_ = false;
    epoch_ = epoch;
}

// Makes left_ the next bytes of the plan; false at its end.
bool RequestBuilder::load() {
    while (left_.size == 0) {
        if (ended_ || !cursor_.next(left_)) {
            ended_ = true;
            left_.size = 0;
            left_.planOffset = plan_.bytes;
            return false;
        }
    }
    return true;
}

int RequestBuilder::device() const {
    const PlanRegion& region = plan_.localRegions[left_.localRegion];
    return region.type == MemType::VRAM ? static_cast<int>(region.deviceId) : -1;
}

RequestBuilder::Head RequestBuilder::head() const {
    const File& target = file();
    const bool gpu = device() >= 0;
    if (!target.direct(epoch_)) {
        return {false, gpu, left_.size};
    }
    const uint64_t unit = target.directUnit();
    const uint64_t begin = left_.remote;
    const uint64_t end = begin + left_.size;
    const uint64_t first = (begin + unit - 1) / unit * unit;
    const uint64_t last = end / unit * unit;
    if (first >= last) {
        return {false, gpu, left_.size};
    }
    if (begin != first) {
        return {false, gpu, first - begin};
    }
    const bool aligned = left_.local % target.memoryAlign() == 0;
    const bool gather = !limits_.vectored && left_.size < limits_.gatherBelow;
    return {true, gpu || gather || !aligned || mustStage() || cannotPin(), last - begin};
}

// Passes over bytes of the other route; false at the end of the plan.
bool RequestBuilder::skipForeign() {
    while (load()) {
        const Head next = head();
        if (next.direct == (route_ == Route::QUEUE)) {
            return true;
        }
        drop(next.size);
    }
    return false;
}

void RequestBuilder::take(IoRequest& request, uint64_t size) {
    auto* memory = reinterpret_cast<char*>(left_.local);
    iovec* last = request.user.empty() ? nullptr : &request.user.back();
    if (last != nullptr && static_cast<char*>(last->iov_base) + last->iov_len == memory) {
        last->iov_len += size;
    } else {
        request.user.push_back({memory, size});
    }
    request.length += size;
    drop(size);
}

bool RequestBuilder::joins(const IoRequest& request, const Head& first, const Head& next) const {
    const iovec& last = request.user.back();
    const bool contiguous =
        static_cast<char*>(last.iov_base) + last.iov_len == reinterpret_cast<char*>(left_.local);
    const bool room =
        contiguous || (request.user.size() < kMaxVectors && (limits_.vectored || first.staged));
    return next.direct == first.direct && next.staged == first.staged && room &&
           device() == request.device && &file() == request.file &&
           left_.remote == request.offset + request.length &&
           left_.planOffset == request.planOffset + request.length &&
           request.length + next.size <= limits_.mergeBytes;
}

RequestBuilder::Outcome RequestBuilder::open(IoRequest& request, const Head& first, int& error) {
    request.file = &file();
    request.twin = !first.direct;
    request.device = device();
    error = request.file->checkName(epoch_);
    const int fd = error != 0 ? -error : request.file->acquire(request.twin);
    if (fd < 0) {
        error = -fd;
        return File::outOfDescriptors(error) && request.file->othersPinned() ? Outcome::WAIT
                                                                             : Outcome::FAILED;
    }
    if (first.staged) {
        request.bounce = bounces_.take();
        if (request.bounce == nullptr) {
            request.file->release(request.twin);
            request.reset();
            error = ENOMEM;
            return bounces_.inUse() > 0 ? Outcome::WAIT : Outcome::FAILED;
        }
    }
    request.fd = fd;
    return Outcome::READY;
}

RequestBuilder::Outcome RequestBuilder::next(IoRequest& request, int& error) {
    request.reset();
    if (!skipForeign()) {
        return Outcome::END;
    }
    const Head first = head();
    request.op = plan_.op == OpType::WRITE ? IoOp::WRITE : IoOp::READ;
    request.offset = left_.remote;
    request.planOffset = left_.planOffset;
    const Outcome outcome = open(request, first, error);
    if (outcome == Outcome::WAIT) {
        return outcome;
    }
    if (outcome == Outcome::FAILED) {
        request.offset = left_.remote;
        request.planOffset = left_.planOffset;
        request.total = first.size;
        drop(first.size);
        return outcome;
    }
    request.memory = request.device < 0 ? memory() : nullptr;
    request.careful = request.bounce != nullptr && cannotPin();
    // Cut at multiples of the merge size of the file, so that requests stay aligned there.
    const uint64_t cut = limits_.mergeBytes - left_.remote % limits_.mergeBytes;
    take(request, std::min(first.size, first.size > limits_.mergeBytes ? cut : first.size));
    while (load()) {
        const Head more = head();
        if (!joins(request, first, more)) {
            break;
        }
        take(request, more.size);
    }
    finish(request);
    useFixedBuffer(request);
    return Outcome::READY;
}

// Takes the registered buffer that holds all of the request's memory, if there is one.
void RequestBuilder::useFixedBuffer(IoRequest& request) const {
    const Memory* const memory = request.memory;
    if (memory == nullptr || memory->fixedBuffers.empty() || request.vectorCount != 1 ||
        request.bounce != nullptr) {
        return;
    }
    const uint64_t begin = reinterpret_cast<uint64_t>(request.vectors->iov_base) - memory->address;
    const uint64_t last = begin + request.length - 1;
    if (last < memory->size && begin / kFixedChunk == last / kFixedChunk) {
        request.fixedBuffer = memory->fixedBuffers[begin / kFixedChunk];
    }
}

void RequestBuilder::drop(uint64_t bytes) {
    left_.local += bytes;
    left_.remote += bytes;
    left_.planOffset += bytes;
    left_.size -= bytes;
}

// Points the window at the memory or at the bounce buffer.
void RequestBuilder::finish(IoRequest& request) const {
    request.total = request.length;
    if (request.bounce != nullptr) {
        request.bounceVector = {request.bounce->data, request.length};
        request.vectors = &request.bounceVector;
        request.vectorCount = 1;
        request.fixedBuffer = request.bounce->fixedBuffer;
    } else {
        request.vectors = request.user.data();
        request.vectorCount = static_cast<unsigned>(request.user.size());
    }
}

bool usesRoute(const TransferPlan& plan, Route route, uint64_t epoch) {
    const auto file_of = [&plan](const PlanRun& run) -> const File& {
        return *static_cast<const File*>(plan.remoteRegions[run.remoteRegion].memory);
    };
    return std::any_of(plan.runs.begin(), plan.runs.end(), [&](const PlanRun& run) {
        const File& file = file_of(run);
        if (!file.direct(epoch)) {
            return route == Route::POOL;
        }
        const uint64_t unit = file.directUnit();
        const uint64_t stride = run.count > 1 ? run.remoteStride : 0;
        const bool aligned = (run.remote | run.size | stride) % unit == 0;
        return route == Route::QUEUE ? run.size >= unit : !aligned;
    });
}

}  // namespace nixl::posix
