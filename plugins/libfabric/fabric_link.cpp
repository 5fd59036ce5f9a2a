// See fabric_link.h.
#include "fabric_link.h"

#include <algorithm>

#include <rdma/fi_errno.h>

#include "fabric_sockets.h"

namespace nixl::fabric {

struct Link::Job {
    explicit Job(FabricJob its_job) : job(std::move(its_job)), cursor(job.runs) {}

    void begin() {
        cursor = SegmentCursor(job.runs);
        segment = {};
        issued = false;
        uses.clear();
    }

    // The next segment, with what follows it on both sides.
    bool next() {
        if (!cursor.next(segment)) {
            return false;
        }
        Segment more;
        for (SegmentCursor after = cursor; segment.size < kPiece && after.next(more);) {
            if (more.local != segment.local + segment.size ||
                more.remote != segment.remote + segment.size ||
                more.localRegion != segment.localRegion ||
                more.remoteRegion != segment.remoteRegion) {
                break;
            }
            segment.size += more.size;
            cursor = after;
        }
        return true;
    }

    FabricJob job;
    SegmentCursor cursor;
    Segment segment;  // what is left of one that has been begun
    std::vector<Key*> uses;
    size_t pending = 0;
    uint64_t bytes = 0;  // of those
    unsigned attempts = 0;
    bool issued = false;
    bool cut = false;  // its connection was closed with some of it under way
    std::optional<Clock::time_point> canceled;
    bool told = false;
    Status error;
};

Link::Link(Domain& domain, std::string name, const RailAddress& own, std::function<void()> closing)
    : domain_(domain), name_(std::move(name)), own_(own), closing_(std::move(closing)) {}

Link::~Link() {
    closeEndpoint();
}

Status Link::failure(const std::string& what, long error) const {
    return Status::disconnected(domain_.text(what, error));
}

void Link::setPeer(const RailAddress& address, Calls& calls) {
    if (address.endpoint != peer_.endpoint || address.instance != peer_.instance) {
        lose(Status::disconnected("LIBFABRIC: the agent has another address now"), calls);
        peer_ = address;
        another_ = false;
    }
}

void Link::add(FabricJob job) {
    jobs_.push_back(std::make_unique<Job>(std::move(job)));
}

Move& Link::takeMove() {
    if (free_.empty()) {
        free_.push_back(&moves_.emplace_back());
    }
    Move& move = *free_.back();
    free_.pop_back();
    return move;
}

// --- the connection

void Link::open() {
    id_ = randomId();
    openedAt_ = Clock::now();
    Result<std::unique_ptr<Endpoint>> made = Endpoint::open(domain_, {}, kReceives);
    if (!made.ok()) {
        broken_ = made.status();
        return;
    }
    endpoint_ = std::move(made).value();
    Result<fi_addr_t> address = endpoint_->insert(peer_.endpoint);
    if (!address.ok()) {
        broken_ = address.status();
        return;
    }
    address_ = address.value();
    say(introduction(MessageType::HELLO));
}

Message Link::introduction(MessageType type) const {
    Message message;
    message.type = type;
    message.agent = name_;
    message.endpoint = endpoint_->name();
    message.instance = own_.instance;
    message.number = interrupted_ ? 1 : 0;
    return message;
}

void Link::closeEndpoint() {
    if (endpoint_ != nullptr) {
        closing_();
        endpoint_.reset();
    }
}

void Link::say(Message message) {
    message.link = id_;
    endpoint_->send(address_, message);
}

// Closing the endpoint ends what is under way; what can be begun again is. REQUIRES: outside of
// look().
void Link::reset(const Status& why, bool count) {
    interrupted_ = interrupted_ || underWay_ != 0;
    closeEndpoint();
    ready_ = blocked_ = cut_ = false;
    broken_ = {};
    keys_.clear();
    wanted_.clear();
    fences_.clear();
    moves_.clear();
    free_.clear();
    underWay_ = reads_ = 0;
    failures_ += count ? 1 : 0;
    openAt_ = Clock::now();
    if (count) {
        openAt_ += std::chrono::milliseconds(10) * (1U << std::min(failures_, 5U));
    }
    for (const JobPtr& job : jobs_) {
        job->cut = job->cut || job->pending != 0;
        job->pending = 0;
        job->bytes = 0;
        job->attempts += count ? 1 : 0;
        job->begin();
        if (job->error.ok() && (job->attempts >= kAttempts || another_)) {
            job->error = why;
        }
    }
}

// Ends the connection: what is under way comes back soon, with errors. False where there is none.
bool Link::cut() {
    cutAt_ = Clock::now();
    if (!domain_.overSockets() || endConnections(peer_.endpoint, Side::FAR).empty()) {
        return false;
    }
    cut_ = interrupted_ = true;
    if (broken_.ok()) {
        broken_ = Status::disconnected("LIBFABRIC: this side has ended its connection");
    }
    for (const JobPtr& job : jobs_) {
        job->cut = job->cut || job->pending != 0;
    }
    return true;
}

bool Link::overdue(const Job& job) const {
    return job.canceled && job.pending != 0 && broken_.ok() &&
           Clock::now() >= std::max(*job.canceled, cutAt_) + kPatience;
}

void Link::cutForCancel() {
    domain_.overSockets() ? void(cut()) : reset({}, false);
}

// A connection that is never made, with a peer whose session lives.
void Link::watchOverConnecting() {
    if (endpoint_ != nullptr && !ready_ && broken_.ok() && !jobs_.empty() &&
        Clock::now() >= openedAt_ + kConnecting) {
        broken_ = Status::disconnected("LIBFABRIC: " + domain_.label() +
                                       ": the peer's endpoint does not answer");
    }
}

// What is under way must come back first: see Domain::overSockets.
bool Link::mustHold() const {
    return underWay_ != 0 && domain_.overSockets();
}

void Link::lose(const Status& why, Calls& calls) {
    for (const JobPtr& job : jobs_) {
        job->attempts = kAttempts;
        job->error = job->error.ok() ? why : job->error;
    }
    if (mustHold()) {
        if (cut()) {
            return;
        }
        for (const JobPtr& job : jobs_) {
            if (job->pending != 0 && !std::exchange(job->told, true)) {
                calls.push_back([tell = job->job.tellUser, why] { tell(why); });
            }
        }
        return;
    }
    if (endpoint_ != nullptr) {
        reset(why, false);
    }
    failures_ = 0;
}

bool Link::close(Calls& calls) {
    const Status why = Status::canceled("the agent has ended");
    if (endpoint_ != nullptr && ready_) {
        Message bye;
        bye.type = MessageType::BYE;
        say(std::move(bye));
    }
    lose(why, calls);
    if (underWay_ != 0) {
        return false;
    }
    for (const JobPtr& job : jobs_) {
        calls.push_back([done = std::move(job->job.done), error = job->error] { done(error); });
    }
    jobs_.clear();
    return true;
}

Clock::time_point Link::lookAt() const {
    Clock::time_point when = Clock::time_point::max();
    const auto now = Clock::now();
    if (endpoint_ == nullptr && !jobs_.empty()) {
        when = openAt_;
    } else if ((unsent() && !held()) || blocked_ ||
               (endpoint_ != nullptr && !ready_ && !jobs_.empty())) {
        when = now + std::chrono::milliseconds(1);
    }
    for (const JobPtr& job : jobs_) {
        if (job->canceled && job->pending != 0) {
            when = std::min(when, std::max(*job->canceled, cutAt_) + kPatience);
        }
        if (job->told) {
            when = std::min(when, now + std::chrono::milliseconds(50));
        }
    }
    return when;
}

// --- moving on

bool Link::step(Calls& calls) {
    bool changed = false;
    if (endpoint_ != nullptr) {
        endpoint_->hold(held());
        changed = endpoint_->look(*this) != 0;
    }
    watchOverConnecting();
    if (!broken_.ok() && !mustHold()) {
        reset(Status(broken_), !cut_);
        changed = true;
    }
    if (endpoint_ == nullptr && !jobs_.empty() && Clock::now() >= openAt_) {
        open();
        changed = true;
    }
    blocked_ = false;
    mayIssue_ = !held();
    bool late = false;
    for (auto at = jobs_.begin(); at != jobs_.end();) {
        Job& job = **at;
        heedCancel(job);
        late = late || overdue(job);
        if (stepJob(job, calls)) {
            at = jobs_.erase(at);
            changed = true;
        } else {
            ++at;
        }
    }
    if (late) {
        cutForCancel();
        changed = true;
    }
    if (endpoint_ != nullptr && ready_ && broken_.ok()) {
        endpoint_->hold(held());
        askForKeys();
        answerFences();
    }
    return changed;
}

void Link::heedCancel(Job& job) {
    if (!job.canceled && job.job.completion->cancelRequested()) {
        job.canceled = Clock::now();
        if (job.error.ok()) {
            job.error = Status::canceled("canceled");
        }
    }
}

// True when the job has ended.
bool Link::stepJob(Job& job, Calls& calls) {
    if (ready_ && broken_.ok() && mayIssue_ && job.error.ok() && !job.issued && keysReady(job)) {
        issue(job);
    }
    if (job.pending != 0 || (job.error.ok() && !job.issued)) {
        return false;
    }
    Status error = job.error;
    if (error.code() == ErrorCode::CANCELED && job.cut && !job.job.read) {
        error = Status::canceled(
            "canceled; remote_unconfirmed: the connection was closed before the peer had all that "
            "was sent");
    }
    calls.push_back([done = std::move(job.job.done), error = std::move(error)] { done(error); });
    return true;
}

bool Link::keysReady(Job& job) {
    if (!job.uses.empty()) {
        const bool dead = std::any_of(job.uses.begin(), job.uses.end(),
                                      [](const Key* key) { return key != nullptr && key->dead; });
        if (dead) {
            job.error = Status::notFound("the peer has deregistered this memory");
        }
        return !dead;
    }
    bool ready = true;
    for (const RailKey& wanted : job.job.keys) {
        Key& key = keys_[wanted.key];
        if (!key.asked) {
            key.asked = true;
            wanted_.push_back(wanted.key);
        }
        ready = ready && (key.live || key.dead);
    }
    if (ready) {
        for (const RailKey& wanted : job.job.keys) {
            job.uses.push_back(&keys_[wanted.key]);
        }
        return keysReady(job);
    }
    return false;
}

void Link::askForKeys() {
    for (size_t at = 0; at < wanted_.size(); at += kKeysOfMessage) {
        const size_t end = std::min(at + kKeysOfMessage, wanted_.size());
        Message use = introduction(MessageType::USE);
        use.keys.assign(wanted_.begin() + static_cast<std::ptrdiff_t>(at),
                        wanted_.begin() + static_cast<std::ptrdiff_t>(end));
        say(std::move(use));
    }
    wanted_.clear();
}

void Link::issue(Job& job) {
    Segment& segment = job.segment;
    const uint64_t limit = domain_.info().ep_attr->max_msg_size;
    while (job.pending < kWindow && job.bytes < kWindowBytes) {
        if (segment.size == 0 && !job.next()) {
            job.issued = true;
            return;
        }
        const uint64_t size = std::min({segment.size, kPiece, limit});
        Key& key = *job.uses[segment.remoteRegion];
        const RailKey& there = job.job.keys[segment.remoteRegion];
        Move& move = takeMove();
        move.owner = &job;
        move.key = &key;
        const long error =
            endpoint_->move(job.job.read, reinterpret_cast<void*>(segment.local), size,
                            job.job.descriptors[segment.localRegion],
                            {address_, segment.remote - there.base, there.key}, move);
        if (error != 0) {
            free_.push_back(&move);
            blocked_ = blocked_ || error == -FI_EAGAIN;
            mayIssue_ = !held();  // it may have begun to read
            if (error != -FI_EAGAIN) {
                broken(error);
            }
            return;
        }
        ++job.pending;
        ++key.underWay;
        ++underWay_;
        reads_ += job.job.read ? 1 : 0;
        job.bytes += size;
        segment.local += size;
        segment.remote += size;
        segment.size -= size;
    }
}

void Link::answerFences() {
    std::erase_if(fences_, [&](const Fence& fence) {
        const bool quiet = std::all_of(fence.keys.begin(), fence.keys.end(),
                                       [&](uint64_t key) { return keys_[key].underWay == 0; });
        if (quiet) {
            Message fenced;
            fenced.type = MessageType::FENCED;
            fenced.number = fence.number;
            say(std::move(fenced));
        }
        return quiet;
    });
}

// --- events

void Link::moved(Move& move, long error) {
    Job& job = *static_cast<Job*>(move.owner);
    --job.pending;
    job.bytes -= move.size;
    --static_cast<Key*>(move.key)->underWay;
    --underWay_;
    reads_ -= move.read ? 1 : 0;
    free_.push_back(&move);
    if (error != 0) {
        job.cut = interrupted_ = true;
        broken_ = broken_.ok() ? failure("moving bytes", error) : broken_;
        job.issued = false;  // not whole
    }
}

void Link::received(const Message& message) {
    if (message.link != id_) {
        return;  // of an earlier connection
    }
    switch (message.type) {
        case MessageType::WELCOME:
            if (message.instance != peer_.instance) {
                another_ = true;
                broken_ = Status::disconnected("LIBFABRIC: another agent answers at its address");
                return;
            }
            ready_ = true;
            interrupted_ = false;
            failures_ = 0;
            break;
        case MessageType::USED:
            for (size_t i = 0; i < message.keys.size(); ++i) {
                Key& key = keys_[message.keys[i]];
                key.live = message.live[i] && !key.dead;
                key.dead = !key.live;
            }
            break;
        case MessageType::FENCE:
            for (const uint64_t number : message.keys) {
                Key& key = keys_[number];
                key.asked = key.dead = true;
                key.live = false;
            }
            fences_.push_back({message.number, message.keys});
            break;
        default:
            break;
    }
}

void Link::sendFailed(uint64_t /*tag*/, long error) {
    broken_ = broken_.ok() ? failure("connecting", error) : broken_;
}

void Link::broken(long error) {
    broken_ = broken_.ok() ? failure("the connection", error) : broken_;
}

}  // namespace nixl::fabric
