// Submitting and reaping; see ring_engine.h.
#include "ring_engine.h"

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "posix/loop_engine.h"

namespace nixl::hf3fs {

namespace {

constexpr double kStartSeconds = 5;         // for threads to end that need not start
constexpr size_t kEnds = 64;                // taken at once
constexpr size_t kDrawn = 256;              // requests at once
constexpr size_t kSmallRequests = 8;        // submitted inside a post
constexpr uint64_t kSmallBytes = 64 << 10;  // the same
constexpr long kWaitNs = 100'000'000;       // for an end, before looking around
constexpr long kLingerNs = 5'000'000;       // stays awake so long after the last end
constexpr unsigned kMaxTries = 100'000;     // of a ring that says it is full
constexpr unsigned kMaxIdleTries = 100;     // the same, where nothing is in flight

thread_local bool t_small = false;

timespec after(long nanoseconds) {
    timespec when{};
    clock_gettime(CLOCK_REALTIME, &when);
    when.tv_nsec += nanoseconds;
    when.tv_sec += when.tv_nsec / 1'000'000'000;
    when.tv_nsec %= 1'000'000'000;
    return when;
}

}  // namespace

RingEngine::RingEngine(const Library& library,
                       const posix::EngineOptions& options,
                       const Iov& bounces,
                       posix::RequestSource& source)
    : library_(library), options_(options), bounces_(bounces), source_(source) {
    for (unsigned i = 0; i < options.depth; ++i) {
        entries_.push_back(std::make_unique<Entry>());
        free_.push_back(entries_.back().get());
    }
}

RingEngine::~RingEngine() {
    for (Ring& ring : rings_) {
        if (ring.open) {
            library_.iorDestroy(&ring.ior);
        }
    }
}

std::unique_ptr<RingEngine> RingEngine::make(const Library& library,
                                             const std::string& mount,
                                             const posix::EngineOptions& options,
                                             const Iov& bounces,
                                             posix::RequestSource& source,
                                             std::string& reason) {
    std::unique_ptr<RingEngine> engine(new RingEngine(library, options, bounces, source));
    reason = engine->start(mount);
    if (!reason.empty()) {
        engine->stop(kStartSeconds);
        return nullptr;
    }
    return engine;
}

std::string RingEngine::start(const std::string& mount) {
    const auto depth = static_cast<int>(options_.depth);
    for (Ring& ring : rings_) {
        const bool read = &ring == &rings_[0];
        const int error =
            library_.iorCreate4 != nullptr
                ? library_.iorCreate4(&ring.ior, mount.c_str(), depth, read, 0, 0, -1, 0)
                : library_.iorCreate(&ring.ior, mount.c_str(), depth, read, 0, -1);
        if (error != 0) {
            return std::string("a ring of ") + std::to_string(depth) +
                   (read ? " reads" : " writes") + " (iopool_size): " + posix::errnoText(-error);
        }
        ring.open = true;
    }
    int error = 0;
    for (Ring& ring : rings_) {
        running_ += 1;
        error = posix::startThread("nixl-3fs-ends", [this, &ring] { reap(ring); }, ring.thread);
        ring.started = error == 0;
        if (error != 0) {
            running_ -= 1;
            return "starting a thread: " + posix::errnoText(error);
        }
    }
    const std::lock_guard lock(mutex_);
    error = posix::startThread("nixl-3fs-submit", [this] { work(); }, submitter_);
    submitterStarted_ = error == 0;
    running_ += error == 0 ? 1 : 0;
    return error == 0 ? std::string() : "starting a thread: " + posix::errnoText(error);
}

void RingEngine::beginSmall() {
    t_small = true;
}

void RingEngine::endSmall() {
    t_small = false;
    pump(kSmallRequests, kSmallBytes);
    if (source_.hasWork()) {
        kick();
    }
}

void RingEngine::kick() {
    if (t_small) {
        return;
    }
    const std::lock_guard lock(mutex_);
    wanted_ = true;
    changed_.notify_all();
}

// Submits as one at a time; who finds another at it leaves it to that one.
void RingEngine::pump(size_t most, uint64_t budget) {
    again_ = true;
    while (again_.load() && !pumping_.exchange(true)) {
        again_ = false;
        fill(most, budget);
        submit();
        pumping_ = false;
    }
}

void RingEngine::fill(size_t most, uint64_t budget) {
    std::vector<Entry*> taken;
    std::vector<posix::IoRequest*> drawn;
    {
        const std::lock_guard lock(mutex_);
        taken.swap(againEntries_);
    }
    for (Entry* const entry : taken) {
        prepare(*entry);
    }
    for (;;) {
        taken.clear();
        drawn.clear();
        const uint64_t in_flight = bytesInFlight_.load();
        {
            const std::lock_guard lock(mutex_);
            const size_t count = std::min({most, free_.size(), kDrawn});
            taken.assign(free_.end() - static_cast<ptrdiff_t>(count), free_.end());
            free_.resize(free_.size() - count);
        }
        for (Entry* const entry : taken) {
            drawn.push_back(&entry->request);
        }
        const uint64_t room =
            in_flight < options_.maxBytesInFlight ? options_.maxBytesInFlight - in_flight : 0;
        const size_t count =
            taken.empty() || room == 0 ? 0 : source_.draw(drawn, std::min(room, budget));
        if (count < taken.size()) {
            const std::lock_guard lock(mutex_);
            free_.insert(free_.end(), taken.begin() + static_cast<ptrdiff_t>(count), taken.end());
        }
        for (size_t i = 0; i < count; ++i) {
            bytesInFlight_ += taken[i]->request.length;
            taken[i]->tries = 0;
            prepare(*taken[i]);
        }
        if (count == 0 || most <= kSmallRequests) {
            return;
        }
        submit();
    }
}

// Hands one request to its ring; what that refuses ends here, or waits while the ring is full.
bool RingEngine::prepare(Entry& entry) {
    posix::IoRequest& request = entry.request;
    Ring& ring = ringOf(request);
    const auto* const memory = static_cast<const RegisteredMemory*>(request.memory);
    const Iov& iov = request.bounce != nullptr ? bounces_ : memory->published->iov;
    // Counted first: its end may be faster than this thread.
    ring.inFlight.fetch_add(1);
    const int index =
        library_.prepIo(&ring.ior, &iov, request.op == posix::IoOp::READ, request.vectors->iov_base,
                        request.fd, request.offset, request.length, &entry);
    if (index >= 0) {
        ring.prepared = true;
        return true;
    }
    const bool others = ring.inFlight.fetch_sub(1) > 1;
    if (index == -EAGAIN && ++entry.tries < (others ? kMaxTries : kMaxIdleTries)) {
        again_ = again_.load() || !others;  // else the next end brings it back
        const std::lock_guard lock(mutex_);
        againEntries_.push_back(&entry);
    } else {
        finish(entry, index == -EAGAIN ? -EBUSY : index);
    }
    return false;
}

void RingEngine::submit() {
    for (Ring& ring : rings_) {
        if (ring.prepared) {
            ring.prepared = false;
            library_.submitIos(&ring.ior);  // a hint only: the file system looks by itself too
            wake(ring);
        }
    }
}

void RingEngine::wake(Ring& ring) {
    if (ring.asleep.load()) {
        const std::lock_guard lock(ring.mutex);
        ring.changed.notify_all();
    }
}

void RingEngine::finish(Entry& entry, int64_t result) {
    posix::IoRequest& request = entry.request;
    const uint64_t before = request.length;
    if (result > 0 && static_cast<uint64_t>(result) > before) {
        result = -EPROTO;  // more than was asked for cannot be trusted
    }
    if (source_.complete(request, result)) {
        bytesInFlight_ -= before - request.length;
        const std::lock_guard lock(mutex_);
        againEntries_.push_back(&entry);
        return;
    }
    bytesInFlight_ -= before;
    const std::lock_guard lock(mutex_);
    free_.push_back(&entry);
}

// Waits until something is in flight; for a moment inside the library, where the next request finds
// this thread awake. False at the end.
bool RingEngine::sleep(Ring& ring, bool& linger) {
    if (ring.inFlight.load() > 0 || (linger && !stop_.load())) {
        return true;
    }
    std::unique_lock lock(ring.mutex);
    ring.asleep = true;
    ring.changed.wait(lock, [&] { return ring.inFlight.load() > 0 || stop_.load(); });
    ring.asleep = false;
    linger = true;
    return ring.inFlight.load() > 0 || !stop_.load();
}

void RingEngine::reap(Ring& ring) {
    std::array<Cqe, kEnds> ends;
    bool linger = false;
    while (sleep(ring, linger)) {
        const bool busy = ring.inFlight.load() > 0;
        const timespec until = after(busy ? kWaitNs : kLingerNs);
        const int count =
            library_.waitForIos(&ring.ior, ends.data(), static_cast<int>(kEnds), 1, &until);
        if (count <= 0) {
            linger = linger && busy;
            if (count < 0 && count != -EINTR && count != -EAGAIN) {
                const timespec pause{0, 1'000'000};
                nanosleep(&pause, nullptr);  // a library that fails is asked again, not in a hurry
            }
        }
        for (int i = 0; i < count; ++i) {
            auto* const entry = static_cast<Entry*>(const_cast<void*>(ends[i].userdata));
            finish(*entry, ends[i].result);
            ring.inFlight.fetch_sub(1);
        }
        pump(SIZE_MAX, UINT64_MAX);
    }
    const std::lock_guard lock(mutex_);
    --running_;
    changed_.notify_all();
}

void RingEngine::work() {
    std::unique_lock lock(mutex_);
    while (!stop_.load()) {
        changed_.wait(lock, [this] { return wanted_ || stop_.load(); });
        wanted_ = false;
        lock.unlock();
        pump(SIZE_MAX, UINT64_MAX);
        lock.lock();
    }
    --running_;
    changed_.notify_all();
}

bool RingEngine::stop(double seconds) {
    pump(SIZE_MAX, UINT64_MAX);  // drops what its owner gave up
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
        changed_.notify_all();
    }
    for (Ring& ring : rings_) {
        const std::lock_guard lock(ring.mutex);
        ring.changed.notify_all();
    }
    std::unique_lock lock(mutex_);
    const bool ended = changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                                         [this] { return running_ == 0; });
    lock.unlock();
    for (Ring& ring : rings_) {
        if (std::exchange(ring.started, false)) {
            ended ? pthread_join(ring.thread, nullptr) : pthread_detach(ring.thread);
        }
    }
    if (std::exchange(submitterStarted_, false)) {
        ended ? pthread_join(submitter_, nullptr) : pthread_detach(submitter_);
    }
    return ended;
}

}  // namespace nixl::hf3fs
