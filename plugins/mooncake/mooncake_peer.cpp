// See mooncake_peer.h.
#include "mooncake_peer.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <utility>

namespace nixl::mooncake {

namespace {

constexpr char kUnconfirmed[] =
    "canceled; remote_unconfirmed: the peer did not answer, and the engine was ended";

}  // namespace

struct MooncakePeer::Batch {
    uint64_t id = kNoBatch;
    std::vector<Segment> pieces;
    size_t ended = 0;  // all before it have
    uint64_t bytes = 0;
};

struct MooncakePeer::Active {
    explicit Active(MooncakeJob its_job)
        : job(std::move(its_job)), cursor(job.runs, *job.localCuts, *job.remoteCuts, kPiece) {}
    bool more() const { return !again.empty() || cursor.more(); }

    MooncakeJob job;
    EntryCursor cursor;
    std::deque<Batch> batches;  // that the engine has
    std::vector<Segment> failed;
    std::deque<Segment> again;  // those that failed once
    Status error;               // nothing more is submitted
    bool ready = false;         // the session is up
    bool issued = false;        // the engine has got everything
    bool told = false;          // the user
    bool repeated = false;
    std::optional<Clock::time_point> decideAt;
    std::optional<Clock::time_point> giveUpAt;
};

// --- the engine

Result<std::shared_ptr<Engine>> Asking::get() {
    const std::lock_guard one(making_);
    {
        const std::lock_guard lock(mutex_);
        if (engine_ != nullptr) {
            return engine_;
        }
    }
    Result<std::shared_ptr<Engine>> made = maker_();
    if (made.ok()) {
        const std::lock_guard lock(mutex_);
        engine_ = made.value();
    }
    return made;
}

Asking::EnginePtr Asking::existing() {
    const std::lock_guard lock(mutex_);
    return engine_;
}

void Asking::retire(const EnginePtr& engine, bool force) {
    const std::lock_guard lock(mutex_);
    if (!own_ || engine == nullptr) {
        return;
    }
    if (engine_ == engine) {
        engine_.reset();
        retired_.emplace_back(engine, force);
        return;
    }
    for (auto& [one, forced] : retired_) {
        forced = forced || (force && one == engine);
    }
}

void Asking::retireAgain(const EnginePtr& engine) {
    const std::lock_guard lock(mutex_);
    retired_.emplace_back(engine, true);
}

Asking::Retired Asking::takeRetired() {
    Retired taken;
    const std::lock_guard lock(mutex_);
    std::erase_if(retired_, [&](std::pair<EnginePtr, bool>& one) {
        const bool unused = one.first.use_count() == 1;
        if (unused || one.second) {
            (unused ? taken.unused : taken.forced).push_back(std::move(one.first));
        }
        return unused || one.second;
    });
    taken.more = !retired_.empty();
    return taken;
}

// --- posts

MooncakePeer::ActivePtr MooncakePeer::add(MooncakeJob job) {
    auto active = std::make_shared<Active>(std::move(job));
    count_.fetch_add(1, std::memory_order_acq_rel);
    const std::lock_guard lock(mutex_);
    active_.push_back(active);
    return active;
}

void MooncakePeer::begin(const ActivePtr& active, const Status& session) {
    Calls calls;
    {
        const std::lock_guard lock(mutex_);
        active->ready = true;
        if (!session.ok() && active->error.ok()) {
            active->error = session;
        }
        step(calls);
    }
    run(calls);
    if (!idle()) {
        busy_(shared_from_this());
    }
}

void MooncakePeer::lose(const Status& why) {
    Calls calls;
    {
        const std::lock_guard lock(mutex_);
        for (const ActivePtr& active : active_) {
            const bool says_more = active->error.ok() ||
                                   active->error.code() == ErrorCode::CANCELED ||
                                   active->decideAt.has_value();
            active->error = says_more ? why : active->error;
            active->decideAt.reset();
            if (!active->batches.empty() && !std::exchange(active->told, true)) {
                calls.push_back(
                    [completion = active->job.completion, why, bytes = active->job.bytes] {
                        completion->tellUser(why, {{0, bytes, 0, 0}});
                    });
            }
        }
        step(calls);
    }
    run(calls);
}

void MooncakePeer::leave(const Status& why) {
    lose(why);
    const std::lock_guard lock(mutex_);
    if (requests_ != 0) {
        asking_->retire(engine_, true);
    }
}

bool MooncakePeer::advance() {
    Calls calls;
    bool moved = false;
    {
        const std::unique_lock lock(mutex_, std::try_to_lock);  // else somebody is at it
        moved = lock.owns_lock() && step(calls);
    }
    run(calls);
    return moved;
}

void MooncakePeer::run(const Calls& calls) {
    for (const auto& call : calls) {
        call();
    }
}

// REQUIRES: mutex_ is held
bool MooncakePeer::step(Calls& calls) {
    bool moved = false;
    for (const ActivePtr& active : active_) {
        const bool its = look(*active);
        giveUp(*active, its);
        moved = its || moved;
    }
    checkLink();
    for (const ActivePtr& active : active_) {
        const bool open = active->error.ok() || active->decideAt.has_value();
        if (open && active->job.completion->cancelRequested() &&
            (!active->issued || !active->failed.empty())) {
            active->error = Status::canceled("canceled");
            active->decideAt.reset();
        }
        while (submit(*active)) {
            moved = true;
        }
    }
    for (size_t i = 0; i < active_.size();) {
        if (over(*active_[i])) {
            finish(active_[i], calls);
            active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
            moved = true;
        } else {
            ++i;
        }
    }
    return moved;
}

bool MooncakePeer::look(Active& active) {
    bool moved = false;
    for (size_t i = 0; i < active.batches.size();) {
        Batch& batch = active.batches[i];
        moved = lookAt(active, batch) || moved;
        if (batch.id == kNoBatch || batch.ended < batch.pieces.size()) {
            ++i;
            continue;
        }
        engine_->release(batch.id, batch.pieces.size());
        requests_ -= batch.pieces.size();
        bytes_ -= batch.bytes;
        active.batches.erase(active.batches.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return moved;
}

bool MooncakePeer::lookAt(Active& active, Batch& batch) {
    const size_t before = batch.ended;
    bool good = false;
    while (batch.id != kNoBatch && batch.ended < batch.pieces.size() &&
           engine_->ended(batch.id, batch.ended, good)) {
        const Segment& piece = batch.pieces[batch.ended++];
        if (!good) {
            active.failed.push_back(piece);
        }
    }
    return batch.ended != before;
}

// The engine cannot take back what it has, and tries a peer that is silent again and again. Whoever
// waits for memory gets it by the end of the engine; others begin again with the next one.
void MooncakePeer::giveUp(Active& active, bool moved) {
    const bool unwanted = active.job.completion->cancelRequested() ||
                          (!active.error.ok() && !active.decideAt.has_value());
    if (!unwanted || active.batches.empty()) {
        return;
    }
    const auto now = Clock::now();
    if (moved || !active.giveUpAt.has_value()) {
        active.giveUpAt = now + kGiveUp;
    } else if (now >= *active.giveUpAt) {
        asking_->retire(engine_, true);
    }
}

// A link of an engine that has failed is used no more, once the engine has nothing of it.
void MooncakePeer::checkLink() {
    if (link_ == Link::OPEN && requests_ == 0 && !asking_->current(engine_)) {
        link_ = Link::CLOSED;
        engine_.reset();
    }
    const bool wanted = std::any_of(active_.begin(), active_.end(), [](const ActivePtr& active) {
        return active->ready && active->error.ok() && !active->issued;
    });
    if (link_ == Link::CLOSED && wanted) {
        open();
    }
}

// The next pieces of a post, as many as there is room for.
std::vector<EngineRequest> MooncakePeer::take(Active& active, Batch& batch) const {
    std::vector<EngineRequest> requests;
    Segment piece;
    while (requests_ + requests.size() < kMostRequests) {
        EntryCursor next = active.cursor;
        if (!active.again.empty()) {
            piece = active.again.front();
        } else if (!next.next(piece)) {
            break;
        }
        const uint64_t bytes = bytes_ + batch.bytes;
        if (bytes != 0 && bytes + piece.size > kMostBytes) {
            break;
        }
        active.again.empty() ? void(active.cursor = next) : active.again.pop_front();
        requests.push_back({active.job.read ? kEngineRead : kEngineWrite,
                            reinterpret_cast<void*>(piece.local), handle_, 0, piece.remote,
                            piece.size});
        batch.pieces.push_back(piece);
        batch.bytes += piece.size;
    }
    return requests;
}

// Whether there may be more to submit.
bool MooncakePeer::submit(Active& active) {
    if (!active.ready || !active.error.ok() || active.issued || link_ != Link::OPEN) {
        return false;
    }
    // Not one by one as room comes: a batch has its price.
    if (requests_ > kMostRequests / 2 || bytes_ > kMostBytes / 2) {
        return false;
    }
    Batch batch;
    std::vector<EngineRequest> requests = take(active, batch);
    active.issued = !active.more();
    if (requests.empty()) {
        return false;
    }
    const Result<uint64_t> submitted = engine_->submit(requests);
    requests_ += requests.size();
    bytes_ += batch.bytes;
    if (!submitted.ok()) {
        // It may have begun some of them: only its end tells that they are over.
        active.error = submitted.status();
        asking_->retire(engine_, true);
    } else {
        batch.id = submitted.value();
    }
    active.batches.push_back(std::move(batch));
    return submitted.ok() && !active.issued;
}

// Whether a post has ended: the engine has nothing of it any more, and it is known why.
bool MooncakePeer::over(Active& active) {
    if (!active.batches.empty()) {
        return false;
    }
    if (!active.failed.empty() && (active.error.ok() || active.decideAt.has_value())) {
        return decided(active);
    }
    return active.issued || !active.error.ok();
}

// The peer is gone, or did not want it: the session tells which, in a moment. If it does not, what
// failed is tried once more, with another engine.
bool MooncakePeer::decided(Active& active) {
    const auto now = Clock::now();
    if (!active.decideAt.has_value()) {
        active.decideAt = now + kSessionTells;
        active.error = Status::backend("Mooncake failed " + std::to_string(active.failed.size()) +
                                       " of its requests to " + segment_ +
                                       " (memory that is not registered there any more, or a "
                                       "broken connection: the log of its "
                                       "engines on stderr says which)");
    }
    if (!active.repeated && now < *active.decideAt) {
        return false;
    }
    asking_->retire(engine_, false);
    if (active.repeated) {
        return true;
    }
    active.repeated = true;
    active.issued = false;
    active.decideAt.reset();
    active.error = {};
    active.again.assign(active.failed.begin(), active.failed.end());
    active.failed.clear();
    return false;
}

void MooncakePeer::finish(const ActivePtr& active, Calls& calls) {
    std::vector<SegmentFailure> failures;
    if (active->decideAt.has_value()) {
        for (const Segment& piece : active->failed) {
            failures.push_back({piece.planOffset, piece.size, 0, 0});
        }
    } else if (!active->error.ok() && active->error.code() != ErrorCode::CANCELED) {
        failures.push_back({0, active->job.bytes, 0, 0});  // what was moved is not told
    }
    calls.push_back([self = shared_from_this(), active, failures = std::move(failures)] {
        active->job.done(active->error, failures);
        self->count_.fetch_sub(1, std::memory_order_acq_rel);
    });
}

// --- the link

void MooncakePeer::open() {
    link_ = Link::OPENING;
    const NoSignals for_it;
    try {
        std::thread([self = shared_from_this()] {
            Result<std::shared_ptr<Engine>> engine = self->asking_->get();
            if (!engine.ok()) {
                self->opened(nullptr, engine.status());
            } else {
                self->opened(engine.value(), engine.value()->openSegment(self->segment_));
            }
        }).detach();
    } catch (const std::system_error& error) {
        link_ = Link::CLOSED;
        for (const ActivePtr& active : active_) {
            active->error =
                Status::backend(std::string("no thread: ") + error.what(), error.code().value());
        }
    }
}

void MooncakePeer::opened(const std::shared_ptr<Engine>& engine, const Result<int32_t>& segment) {
    Calls calls;
    {
        const std::lock_guard lock(mutex_);
        link_ = segment.ok() ? Link::OPEN : Link::CLOSED;
        engine_ = segment.ok() ? engine : nullptr;
        handle_ = segment.ok() ? segment.value() : -1;
        for (const ActivePtr& active : active_) {
            if (!segment.ok() && active->ready && active->error.ok()) {
                active->error = segment.status();
            }
        }
        step(calls);
    }
    run(calls);
}

void MooncakePeer::engineEnded(const std::shared_ptr<Engine>& engine) {
    Calls calls;
    {
        const std::lock_guard lock(mutex_);
        if (engine_ != engine) {
            return;
        }
        for (const ActivePtr& active : active_) {
            if (active->job.completion->cancelRequested() && !active->batches.empty()) {
                active->error = active->error.ok() ? Status::canceled(kUnconfirmed) : active->error;
            }
            if (active->error.ok() && (!active->batches.empty() || !active->failed.empty())) {
                const MooncakeJob& job = active->job;
                active->cursor = EntryCursor(job.runs, *job.localCuts, *job.remoteCuts, kPiece);
                active->failed.clear();
                active->again.clear();
                active->issued = false;
            }
            active->batches.clear();
        }
        requests_ = 0;
        bytes_ = 0;
        link_ = Link::CLOSED;
        engine_.reset();
        step(calls);
    }
    run(calls);
}

}  // namespace nixl::mooncake
