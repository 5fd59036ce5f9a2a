// An initiator and the target: one session over connections that come, half go and go, with two
// threads that hand on what a session says, and the initiator's transfers, whose notifications are
// sent when they are DONE. Not thread-safe.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "session/handshake.h"
#include "session/session.h"
#include "testing/sim/stream_model.h"
#include "testing/sim/world.h"

namespace nixl::sim {

class PairModel final : public peer::Admission {
  public:
    // `calm`: no fault happens to this pair but the target's restart, so nothing may fail.
    PairModel(World& world, const char* name, uint8_t number, uint64_t region, bool calm);

    void step();
    void check();
    void restartTarget();
    // The network has recovered: one round in which everything moves on; true when all has ended.
    bool resolve(int round);
    size_t waiting() const { return initiator_.pending.size() + target_.pending.size(); }

    // Admission
    std::optional<peer::Key> grantKey(peer::GrantId grant) override;
    std::optional<base::Digest> sessionKey(const peer::Identity& peer) override;
    std::optional<peer::Reject> checkIncoming(const peer::Identity& peer) override;
    std::optional<peer::Earlier> earlier(const peer::Identity& peer) override;
    std::optional<peer::Reject> admit(const peer::HandshakeResult& result) override;

  private:
    // A control connection. What is on its way stays so when one end lets go.
    struct Wire {
        std::string toInitiator;
        std::string toTarget;
        bool initiatorLeft = false;
        bool targetLeft = false;
    };
    using WirePtr = std::shared_ptr<Wire>;
    using Event = peer::Session::Event;

    // What one of a side's two threads (reactor, caller that helps) has taken and not yet handled.
    struct Dispatcher {
        std::deque<std::pair<uint64_t, Event>> batch;
    };

    struct Side {
        peer::Identity identity;
        std::unique_ptr<peer::Session> session;
        base::Digest key{};
        WirePtr wire;  // attached
        std::deque<std::pair<uint64_t, Event>> events;
        bool dispatching = false;
        std::array<Dispatcher, 2> threads;
        std::vector<uint64_t> delivered;  // of the peer's incarnation of now
        std::set<uint64_t> deliveredEver;
        std::vector<std::pair<uint64_t, uint64_t>> untaken;  // epoch and cost
        uint64_t untakenCost = 0;
        std::map<uint64_t, std::optional<size_t>> pending;  // message id, and cell of its transfer
    };

    static peer::SessionLimits limits();
    void renew(Side& side);
    Side& other(Side& side) { return &side == &initiator_ ? target_ : initiator_; }
    std::string& input(Side& side, Wire& wire) const {
        return &side == &initiator_ ? wire.toInitiator : wire.toTarget;
    }

    void dial();
    void leave(Side& side);      // lets go of its connection
    void seeEnd(Side& side);     // learns that the other end has let go
    void dropDial();             // the connection being made is lost
    void deliver(Side& side);    // bytes arrive over the connection that is attached
    void handshake(Side& side);  // … or over the one being made
    bool frame(Side& side, peer::FrameType type, const std::string& body);
    void attach(Side& side, const peer::HandshakeResult& result);
    void adopt();
    void receive(Side& side, const std::string& bytes);
    void flush(Side& side);
    void notify(Side& side, std::optional<size_t> cell);
    void dispatch(Side& side, size_t thread);
    void handle(Side& side, uint64_t epoch, Event& event);
    void deliverMessage(Side& side, uint64_t epoch, Event& event);
    void drain(Side& side);
    void takeOne(Side& side);
    void passTime(std::chrono::milliseconds time);
    void restartInitiator();
    void forget(Side& side);
    void transfers(uint64_t what);
    void notifyDone();
    void faults(uint64_t what, Side& side);

    World& world_;
    const bool calm_;
    Side initiator_;
    Side target_;
    StreamModel stream_;
    peer::Time now_ = peer::Time{} + std::chrono::hours(1);
    uint64_t sent_ = 0;
    // The connection being made.
    WirePtr dialled_;
    std::optional<peer::Connector> connector_;
    std::optional<peer::Acceptor> acceptor_;
    std::string handshakeInput_[2];  // of the initiator and the target
    bool adoptDue_ = false;          // accepted; the target has not yet changed over
    // Cells whose notification has not come to its end.
    std::map<uint64_t, size_t> carrying_;
};

}  // namespace nixl::sim
