// See pair_model.h.
#include "testing/sim/pair_model.h"

#include <algorithm>
#include <cstring>

namespace nixl::sim {

using namespace peer;  // NOLINT(google-build-using-namespace)
using std::chrono::milliseconds;

namespace {

constexpr size_t kPipeLimit = 200'000;
constexpr uint64_t kMostMessages = 40;

}  // namespace

PairModel::PairModel(World& world, const char* name, uint8_t number, uint64_t region, bool calm)
    : world_(world), calm_(calm), stream_(world, region, calm) {
    initiator_.identity = {name, {number}};
    target_.identity = world.target;
    renew(initiator_);
    renew(target_);
}

SessionLimits PairModel::limits() {
    SessionLimits limits;
    limits.peerTimeout = milliseconds(1000);
    limits.window = 300'000;
    limits.queue = 600'000;
    return limits;
}

void PairModel::renew(Side& side) {
    side.session = std::make_unique<Session>("peer", limits());
}

// --- Admission ---

std::optional<Key> PairModel::grantKey(GrantId grant) {
    return world_.access.grantKey(grant);
}

std::optional<base::Digest> PairModel::sessionKey(const Identity& /*peer*/) {
    return std::nullopt;
}

std::optional<Reject> PairModel::checkIncoming(const Identity& /*peer*/) {
    return std::nullopt;
}

std::optional<Earlier> PairModel::earlier(const Identity& /*peer*/) {
    Resume resume = target_.session->resume();
    if (resume.epoch == 0) {
        return std::nullopt;
    }
    if (world_.bug == Bug::WRONG_RESUME) {
        ++resume.received;
    }
    return Earlier{resume, target_.key};
}

std::optional<Reject> PairModel::admit(const HandshakeResult& /*result*/) {
    return std::nullopt;
}

// --- What happens next ---

void PairModel::step() {
    Side& side = world_.pick(2) == 0 ? initiator_ : target_;
    const uint64_t what = world_.pick(100);
    if (what < 20) {
        deliver(side);
    } else if (what < 28) {
        handshake(side);
    } else if (what < 40) {
        flush(side);
    } else if (what < 54) {
        dispatch(side, world_.pick(2));
    } else if (what < 60) {
        notify(side, std::nullopt);
    } else if (what < 65) {
        takeOne(side);
    } else if (what < 68) {
        dial();
    } else if (what < 71) {
        seeEnd(side);
    } else if (what < 73) {
        adopt();
    } else if (what < 94) {
        transfers(what);
    } else if (!calm_) {
        faults(what, side);
    }
}

void PairModel::transfers(uint64_t what) {
    if (what < 80) {
        const std::optional<size_t> cell = stream_.submit();
        if (cell && world_.bug == Bug::EARLY_NOTIFY) {
            notify(initiator_, cell);
        }
    } else if (what < 93) {
        stream_.move();
        notifyDone();
    } else {
        stream_.cancel();
    }
}

void PairModel::notifyDone() {
    for (const size_t cell : stream_.takeDone()) {
        if (world_.pick(3) == 0 || world_.bug == Bug::EARLY_NOTIFY) {
            stream_.release(cell);  // nobody is told
        } else {
            notify(initiator_, cell);
        }
    }
}

void PairModel::faults(uint64_t what, Side& side) {
    if (what < 96) {
        passTime(milliseconds(world_.pick(200)));
    } else if (what < 97) {
        leave(side);
    } else if (what < 98 && world_.pick(10) == 0) {
        stream_.revoke();
    } else if (what < 99 && world_.pick(10) == 0) {
        stream_.fail();
    } else if (world_.pick(20) == 0) {
        restartInitiator();
    }
}

// --- Connections ---

void PairModel::dial() {
    if (initiator_.wire || connector_) {
        return;
    }
    std::optional<Earlier> kept;
    if (initiator_.session->resume().epoch != 0) {
        kept = Earlier{initiator_.session->resume(), initiator_.key};
    }
    dropDial();
    dialled_ = std::make_shared<Wire>();
    connector_.emplace(HandshakeSelf{initiator_.identity, {}, 0, {}}, target_.identity,
                       ConnectionKind::CONTROL, base::asView(kGrant), grantId(kGrant), kept);
    acceptor_.emplace(HandshakeSelf{target_.identity, {}, 0, {}}, *this);
    dialled_->toTarget = connector_->start().substr(kMagic.size());
}

void PairModel::dropDial() {
    connector_.reset();
    acceptor_.reset();
    adoptDue_ = false;
    dialled_.reset();
    handshakeInput_[0].clear();
    handshakeInput_[1].clear();
}

void PairModel::leave(Side& side) {
    const bool initiator = &side == &initiator_;
    if (side.wire) {
        (initiator ? side.wire->initiatorLeft : side.wire->targetLeft) = true;
        side.session->detach();
        side.wire.reset();
    }
    if (dialled_ && (!initiator || connector_)) {
        // The initiator may be on it already, and then sees its end.
        (initiator ? dialled_->initiatorLeft : dialled_->targetLeft) = true;
        dropDial();
    }
}

void PairModel::seeEnd(Side& side) {
    if (!side.wire || !input(side, *side.wire).empty()) {
        return;
    }
    const bool gone = &side == &initiator_ ? side.wire->targetLeft : side.wire->initiatorLeft;
    if (gone) {
        side.session->detach();
        side.wire.reset();
    }
}

void PairModel::deliver(Side& side) {
    if (!side.wire) {
        return;
    }
    std::string& pipe = input(side, *side.wire);
    if (pipe.empty()) {
        return;
    }
    const size_t limit = 1 + world_.pick(world_.pick(4) == 0 ? 50 : 150'000);
    const std::string bytes = pipe.substr(0, limit);
    pipe.erase(0, bytes.size());
    receive(side, bytes);
}

void PairModel::handshake(Side& side) {
    const bool initiator = &side == &initiator_;
    if (!dialled_ || (initiator ? !connector_ : !acceptor_ || adoptDue_)) {
        return;
    }
    std::string& pipe = input(side, *dialled_);
    const size_t size = std::min<size_t>(pipe.size(), 1 + world_.pick(400));
    std::string& kept = handshakeInput_[initiator ? 0 : 1];
    kept += pipe.substr(0, size);
    pipe.erase(0, size);
    while (kept.size() >= kFrameHeader) {
        const auto header = readHeader(kept);
        if (!header.ok()) {
            return world_.broken("a bad frame in the handshake: " + header.status().message());
        }
        const size_t whole = kFrameHeader + header.value().length;
        if (kept.size() < whole || (initiator ? !connector_ : !acceptor_)) {
            return;
        }
        const std::string body = kept.substr(kFrameHeader, header.value().length);
        kept.erase(0, whole);
        if (!frame(side, header.value().type, body)) {
            return;
        }
    }
}

bool PairModel::frame(Side& side, FrameType type, const std::string& body) {
    const bool initiator = &side == &initiator_;
    auto answer = initiator ? connector_->onFrame(type, body) : acceptor_->onFrame(type, body);
    if (!answer.ok()) {
        world_.broken("a handshake between friends failed: " + answer.status().message());
        return false;
    }
    input(other(side), *dialled_) += answer.value();
    if (initiator && connector_->done()) {
        const HandshakeResult result = connector_->result();
        initiator_.wire = dialled_;
        connector_.reset();
        attach(initiator_, result);
        const std::string early = std::exchange(handshakeInput_[0], {});
        if (!early.empty()) {
            receive(initiator_, early);
        }
        return false;
    }
    adoptDue_ = adoptDue_ || (!initiator && acceptor_->done());
    return !adoptDue_;
}

// Between the last frame of the handshake and the change the old connection may still be read.
void PairModel::adopt() {
    if (!adoptDue_) {
        return;
    }
    adoptDue_ = false;
    if (target_.wire) {
        target_.wire->targetLeft = true;
        target_.session->detach();
    }
    target_.wire = dialled_;
    attach(target_, acceptor_->result());
    acceptor_.reset();
    const std::string early = std::exchange(handshakeInput_[1], {});
    if (!early.empty()) {
        receive(target_, early);
    }
}

void PairModel::attach(Side& side, const HandshakeResult& result) {
    side.session->attach(now_, result.peerResume, result.resumed);
    side.key = result.key;
}

// --- Sessions ---

void PairModel::receive(Side& side, const std::string& bytes) {
    if (const Status status = side.session->receive(bytes, now_); !status.ok()) {
        world_.broken("a session between friends violated the protocol: " + status.message());
    }
    if (world_.bug == Bug::EARLY_ACK) {
        side.session->delivered(side.session->epoch(), side.session->receivedSequence());
    }
}

void PairModel::flush(Side& side) {
    if (!side.wire) {
        return;
    }
    std::string& pipe = input(other(side), *side.wire);
    if (pipe.size() < kPipeLimit) {
        side.session->produce(pipe, pipe.size() + 1 + world_.pick(100'000));
    }
}

void PairModel::notify(Side& side, std::optional<size_t> cell) {
    if (!cell && sent_ >= kMostMessages) {
        return;
    }
    const uint64_t id = ++world_.nextId;
    const uint64_t sizes[] = {8, 8, 100, 70'000, 140'000};
    std::string message(sizes[world_.pick(5)], 'n');
    std::memcpy(message.data(), &id, sizeof(id));
    if (!side.session->send(std::move(message), id).ok()) {
        if (cell) {
            stream_.release(*cell);
        }
        return;
    }
    side.pending.emplace(id, cell);
    if (cell) {
        carrying_.emplace(id, *cell);
    }
    ++sent_;
    ++world_.outcome.notifications;
}

// One thread either takes what the session has to say, or handles one event of what it took. Only
// one of them handles at a time: the other leaves its events to it.
void PairModel::dispatch(Side& side, size_t thread) {
    Dispatcher& mine = side.threads[thread];
    if (mine.batch.empty()) {
        for (Event& event : side.session->takeEvents()) {
            side.events.emplace_back(side.session->epoch(), std::move(event));
        }
        if (side.events.empty() || (side.dispatching && world_.bug != Bug::HELP_ORDER)) {
            return;
        }
        side.dispatching = true;
        mine.batch.swap(side.events);
        return;
    }
    auto [epoch, event] = std::move(mine.batch.front());
    mine.batch.pop_front();
    if (mine.batch.empty()) {
        side.dispatching = false;
    }
    handle(side, epoch, event);
}

void PairModel::handle(Side& side, uint64_t epoch, Event& event) {
    if (event.kind == Event::Kind::DELIVER) {
        deliverMessage(side, epoch, event);
        return;
    }
    if (event.kind != Event::Kind::SENT) {
        return;
    }
    const auto found = side.pending.find(event.token);
    if (found == side.pending.end()) {
        return world_.broken("a notification ended twice");
    }
    if (found->second && carrying_.erase(event.token) != 0) {
        stream_.release(*found->second);  // it will not come any more, or has come
    }
    side.pending.erase(found);
    if (event.status.ok() && !other(side).deliveredEver.contains(event.token)) {
        world_.broken("a notification is DONE and not in the peer's queue");
    }
    if (!event.status.ok() && calm_ && !world_.targetRestarted) {
        world_.broken("another peer's fault ended a notification: " + event.status.message());
    }
}

void PairModel::deliverMessage(Side& side, uint64_t epoch, Event& event) {
    uint64_t id = 0;
    std::memcpy(&id, event.text.data(), sizeof(id));
    if (!side.deliveredEver.insert(id).second) {
        world_.broken("a notification arrived twice");
    }
    if (!side.delivered.empty() && side.delivered.back() >= id) {
        world_.broken("notifications arrived out of order");
    }
    if (const auto cell = carrying_.find(id); cell != carrying_.end()) {
        if (!stream_.arrived(cell->second)) {
            world_.broken("a notification came before its data");
        }
    }
    side.delivered.push_back(id);
    side.untaken.emplace_back(epoch, event.token);
    side.untakenCost += event.token;
    side.session->delivered(epoch, event.sequence);
}

void PairModel::drain(Side& side) {
    // Whoever is in the middle of handling goes on with it first.
    for (size_t thread = 0; thread < 2; ++thread) {
        while (!side.threads[thread].batch.empty()) {
            dispatch(side, thread);
        }
    }
    do {
        dispatch(side, 0);
    } while (!side.threads[0].batch.empty());
}

void PairModel::takeOne(Side& side) {
    if (!side.untaken.empty()) {
        const auto [epoch, cost] = side.untaken.front();
        side.untaken.erase(side.untaken.begin());
        side.untakenCost -= cost;
        side.session->consumed(epoch, cost);
    }
}

void PairModel::passTime(milliseconds time) {
    now_ += time;
    for (Side* side : {&initiator_, &target_}) {
        Time next;
        if (!side->session->tick(now_, next).ok()) {
            leave(*side);
            side->session->fail(Status::disconnected("silent"));
        } else if (next <= now_) {
            world_.broken("a timer is due at once, for ever");
        }
    }
}

// --- Restarts: a new incarnation, which knows nothing ---

void PairModel::forget(Side& side) {
    for (const auto& [id, cell] : side.pending) {
        if (cell && carrying_.erase(id) != 0) {
            stream_.release(*cell);
        }
    }
    const auto number = side.identity.incarnation[1];
    side.identity.incarnation[1] = static_cast<uint8_t>(number + 1);
    side.pending.clear();
    side.untaken.clear();
    side.untakenCost = 0;
    side.delivered.clear();
    side.events.clear();
    side.threads = {};
    side.dispatching = false;
    renew(side);
}

void PairModel::restartInitiator() {
    leave(initiator_);
    dropDial();
    stream_.fail();
    notifyDone();
    forget(initiator_);
    // The target has another session for another incarnation; this one ends.
    leave(target_);
    target_.session->fail(Status::disconnected("restarted"));
    drain(target_);
    target_.untaken.clear();
    target_.untakenCost = 0;
    target_.delivered.clear();
    renew(target_);
}

void PairModel::restartTarget() {
    leave(target_);
    leave(initiator_);
    dropDial();
    initiator_.session->fail(Status::disconnected("restarted"));
    drain(initiator_);
    initiator_.untaken.clear();
    initiator_.untakenCost = 0;
    initiator_.delivered.clear();
    renew(initiator_);
    forget(target_);
    stream_.fail();
    notifyDone();
}

// --- What holds ---

void PairModel::check() {
    stream_.check();
    for (const Side* side : {&initiator_, &target_}) {
        if (side->session->bufferedInput() > kMaxNotification + 2 * kMaxControlFrame) {
            world_.broken("input is kept without bound");
        }
        if (side->session->queuedBytes() > limits().queue) {
            world_.broken("more notifications wait than the limit allows");
        }
        // Two windows: of this epoch and of the one before, which nobody has taken yet.
        if (side->untakenCost > 2 * limits().window) {
            world_.broken("a sender went beyond its credit");
        }
    }
}

bool PairModel::resolve(int round) {
    if (round % 10 == 0) {
        dial();
    }
    for (Side* side : {&initiator_, &target_}) {
        handshake(*side);
        adopt();
        deliver(*side);
        seeEnd(*side);
        drain(*side);
        takeOne(*side);
        flush(*side);
    }
    for (int i = 0; i < 4; ++i) {
        stream_.move();
        notifyDone();
    }
    check();
    passTime(milliseconds(1));
    return initiator_.pending.empty() && target_.pending.empty() && !stream_.busy();
}

}  // namespace nixl::sim
