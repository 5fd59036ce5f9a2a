// Drawing requests from parts in turn and taking their results; see job.h.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "nixl/user_memory.h"

#include "job.h"

namespace nixl::posix {

namespace {

constexpr size_t kTurn = 8;             // requests a part gives before the next one's turn
constexpr unsigned kMaxRetries = 1000;  // of a request that the kernel puts off with EAGAIN

// Errors that concern some bytes of a request only, so that its vectors are tried one by one.
bool concernsSomeBytes(int error) {
    return error == EIO || error == ENOSPC || error == EDQUOT || error == EFBIG ||
           error == EFAULT || error == EILSEQ || error == ENODATA || error == EREMOTEIO;
}

// Goes on to the next vector of a request in solo mode; false after the last.
bool nextSolo(IoRequest& request) {
    if (request.length > 0) {  // failed: passed over
        request.offset += request.length;
        request.done += request.length;
        ++request.vectors;
    }
    if (request.vectors == request.user.data() + request.user.size()) {
        return false;
    }
    request.unitStart = request.done;
    request.unitSize = request.vectors->iov_len;
    request.length = request.vectors->iov_len;
    request.vectorCount = 1;
    return true;
}

}  // namespace

void Scheduler::push(Part& part) {
    const std::lock_guard lock(mutex_);
    active_.push_back(&part);
    ++activeCount_;
}

Part* Scheduler::pop(bool& others) {
    const std::lock_guard lock(mutex_);
    if (active_.empty()) {
        return nullptr;
    }
    Part* part = active_.front();
    active_.pop_front();
    --activeCount_;
    others = !active_.empty();
    return part;
}

void Scheduler::add(Part& part) {
    push(part);
    engine_->kick();
}

void Scheduler::park(Part& part) {
    {
        const std::lock_guard lock(mutex_);
        parked_.push_back(&part);
        ++shared_.parked;
    }
    // Whoever freed the last resource before the count went up did not see this part.
    if ((shared_.files->pinned() == 0 && shared_.bounces.inUse() == 0) || part.job().canceled()) {
        wake();
    }
}

void Scheduler::wake() {
    {
        const std::lock_guard lock(mutex_);
        for (Part* part : parked_) {
            active_.push_back(part);
            ++activeCount_;
            --shared_.parked;
        }
        parked_.clear();
    }
    engine_->kick();
}

void Scheduler::handBack(IoRequest& request) {
    {
        const std::lock_guard lock(mutex_);
        const bool bounced = request.vectors == &request.bounceVector;
        IoRequest& kept = returned_.emplace_back(std::move(request));
        if (bounced) {
            kept.vectors = nullptr;  // pointed at the bounce vector again when drawn
        }
        ++activeCount_;
    }
    engine_->kick();
}

bool Scheduler::takeReturned(IoRequest& request) {
    const std::lock_guard lock(mutex_);
    if (returned_.empty()) {
        return false;
    }
    request = std::move(returned_.back());
    returned_.pop_back();
    --activeCount_;
    if (request.vectors == nullptr) {
        request.vectors = &request.bounceVector;
    }
    return true;
}

// Gives requests that were handed back; how many.
size_t Scheduler::drawReturned(std::span<IoRequest*> entries,
                               uint64_t byte_budget,
                               uint64_t& bytes) {
    size_t count = 0;
    while (count < entries.size() && bytes < byte_budget && takeReturned(*entries[count])) {
        bytes += entries[count++]->length;
    }
    return count;
}

size_t Scheduler::draw(std::span<IoRequest*> entries, uint64_t byte_budget) {
    uint64_t bytes = 0;
    size_t count = drawReturned(entries, byte_budget, bytes);
    while (count < entries.size() && bytes < byte_budget) {
        bool others = false;
        Part* part = pop(others);
        if (part == nullptr) {
            break;
        }
        const size_t limit = others ? std::min(entries.size(), count + kTurn) : entries.size();
        switch (part->fill(entries, count, limit, bytes, byte_budget)) {
            case Part::Filled::MORE:
                if (part->single()) {
                    part->hold();
                    break;
                }
                push(*part);
                engine_->kick();  // another thread may go on with it
                break;
            case Part::Filled::END:
                part->drop();
                break;
            case Part::Filled::WAIT:
                park(*part);
                return count;
        }
    }
    return count;
}

bool Scheduler::abandoned(const IoRequest& request) const {
    return request.part->job().canceled();
}

void Scheduler::prepareBounce(const IoRequest& request) {
    Bounce& bounce = *request.bounce;
    if (!bounce.registrationTried && this == shared_.queue) {
        bounce.registrationTried = true;
        bounce.fixedBuffer = engine_->registerBuffer(bounce.data, shared_.bounces.bytes());
        if (bounce.fixedBuffer == -ENOMEM && !shared_.toldMemlock.exchange(true)) {
            shared_.log(std::string(shared_.plugin) +
                        ": registering buffers: Cannot allocate memory; going without (the "
                        "limit is RLIMIT_MEMLOCK, ulimit -l)");
        }
    }
    if (!bounce.pinTried && request.device >= 0) {
        bounce.pinTried = true;
        bounce.pinned = devices().pin(request.device, bounce.data, shared_.bounces.bytes()).ok();
    }
}

bool Scheduler::complete(IoRequest& request, int64_t result) {
    if (result > 0 && static_cast<uint64_t>(result) == request.length && !request.solo) {
        request.offset += request.length;
        request.done += request.length;
        finish(request);
        return false;
    }
    return finish(request, result);
}

// Everything but complete success. True: submit what is left.
bool Scheduler::finish(IoRequest& request, int64_t result) {
    Job& job = request.part->job();
    const bool direct = !request.twin;
    int error = 0;
    bool failed = false;
    if (result == -ECANCELED && job.canceled()) {
        job.dropped();
    } else if (result == -EINTR || (result == -EAGAIN && ++request.retries < kMaxRetries)) {
        return true;
    } else if (result < 0) {
        error = static_cast<int>(-result);
        failed = true;
        if (error == EINVAL && direct && useTwin(request)) {
            request.refused = true;
            return true;
        }
        if (error == EFAULT && direct && useBounce(request)) {
            return true;
        }
    } else {
        request.advance(static_cast<uint64_t>(result));
        if (request.length > 0) {
            const bool odd = direct && request.file->direct(job.epoch()) &&
                             request.offset % request.file->offsetAlign() != 0;
            if (result > 0 && !odd) {
                return true;
            }
            if (odd && result > 0 && request.op == IoOp::WRITE && useTwin(request)) {
                return true;
            }
            error = request.op == IoOp::READ ? 0 : EIO;  // 0: end of file
            failed = true;
        }
    }
    if (failed) {
        if (!request.solo && request.vectorCount > 1 && concernsSomeBytes(error)) {
            request.solo = true;
            request.vectorCount = 1;
            request.length = request.vectors->iov_len;
            request.unitSize = request.done + request.length;
            return true;
        }
        job.fail(request, error);
    }
    if (request.solo && nextSolo(request)) {
        return true;
    }
    finish(request);
    return false;
}

// Sends the rest of a direct request through the page cache.
bool Scheduler::useTwin(IoRequest& request) {
    const int fd = request.file->acquire(true);
    if (fd < 0) {
        return false;
    }
    request.file->release(false);
    request.twin = true;
    request.fd = fd;
    return true;
}

// Sends the rest of a direct request, whose memory the kernel cannot pin, through a bounce buffer.
// False where that cannot help: the memory is gone.
bool Scheduler::useBounce(IoRequest& request) {
    if (request.bounce != nullptr || request.device >= 0 || request.solo) {
        return false;
    }
    // The engine cannot wait for one that another request holds.
    Bounce* const bounce = shared_.bounces.take(true);
    if (bounce == nullptr) {
        return false;
    }
    // What was moved already is left out from here on.
    request.user.erase(request.user.begin(),
                       request.user.begin() + (request.vectors - request.user.data()));
    request.planOffset += request.done;
    request.done = 0;
    request.total = request.length;
    request.unitStart = 0;
    request.unitSize = request.length;
    if (request.op == IoOp::WRITE && !copyFromUser(bounce->data, request.user, request.length)) {
        shared_.bounces.give(bounce);
        request.vectors = request.user.data();
        return false;
    }
    if (request.op == IoOp::WRITE && request.memory != nullptr) {
        request.memory->cannotPin = true;
    }
    request.bounce = bounce;
    request.careful = true;
    request.fixedBuffer = -1;
    request.bounceVector = {bounce->data, request.length};
    request.vectors = &request.bounceVector;
    request.vectorCount = 1;
    return true;
}

void Scheduler::finish(IoRequest& request) {
    File& file = *request.file;
    if (request.refused && request.done > 0 && file.direct(UINT64_MAX - 1)) {
        file.refuseDirect(++shared_.epoch);
        ++shared_.refusals;
        shared_.log(std::string(shared_.plugin) + ": " + file.label() +
                    ": O_DIRECT was refused (Invalid argument), going "
                    "buffered");
    }
    if (request.bounce != nullptr && request.op == IoOp::READ) {
        scatter(request);
    }
    Part& part = *request.part;
    giveBack(request);
    part.drop();  // last: it may end the job and with it the part
}

void Scheduler::giveBack(IoRequest& request) {
    if (request.bounce != nullptr) {
        shared_.bounces.give(request.bounce);
    }
    request.file->release(request.twin);
    request.reset();
    shared_.wakeParked();
}

// Memory that turns out to be gone fails alone.
void Scheduler::scatterChecked(const IoRequest& request) {
    const auto* const source = static_cast<const char*>(request.bounce->data);
    bool all = true;
    uint64_t at = 0;
    for (const iovec& vector : request.user) {
        const iovec piece{vector.iov_base, std::min<uint64_t>(request.done - at, vector.iov_len)};
        if (piece.iov_len == 0) {
            break;
        }
        if (!copyToUser({&piece, 1}, source + at, piece.iov_len)) {
            all = false;
            IoRequest failed = request;
            failed.unitStart = at;
            failed.unitSize = vector.iov_len;
            failed.offset -= request.done - at;
            failed.done = at;
            request.part->job().fail(failed, EFAULT);
        }
        at += piece.iov_len;
    }
    if (all && request.careful && request.memory != nullptr) {
        request.memory->cannotPin = true;
    }
}

// Copies what was read into the bounce buffer to where it belongs.
void Scheduler::scatter(IoRequest& request) {
    if (request.device < 0) {
        scatterChecked(request);
        return;
    }
    const std::string reason =
        copyToGpu(devices(), request.device, request.user, request.bounce->data, request.done);
    if (!reason.empty()) {
        request.offset -= request.done;
        request.done = 0;
        request.unitSize = request.total;
        request.part->job().fail(request, EIO, reason);
    }
}

}  // namespace nixl::posix
