// Everything this agent has with one incarnation of a peer: the session over its control
// connection, the attachment to its process, data connections and what waits for them.
//
// Threads: public calls from any thread unless said otherwise. Connections are opened and closed
// on the reactor thread only. No lock is held over a callback.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/poll_set.h"
#include "connect/dialer.h"
#include "connect/endpoints.h"
#include "lanes/host/maps.h"
#include "lanes/host/pages.h"
#include "lanes/stream/pool.h"
#include "peer/engine.h"
#include "session/session.h"

namespace nixl::peer {

class Link : public base::PollSet::Member, public std::enable_shared_from_this<Link> {
  public:
    static std::shared_ptr<Link> make(EngineImpl& engine, Identity peer);
    ~Link() override;
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    const Identity& peer() const { return peer_; }

    // Adds what the agent knows of the peer.
    void setMetadata(std::optional<Endpoints> endpoints, GrantsPtr grants);
    bool hasMetadata();
    std::optional<Endpoints> endpoints();
    GrantsPtr grants();  // null where the agent does not know the peer's metadata

    // `token`, where given, is set before `done` can be called.
    Status send(std::string message, Done done, std::atomic<uint64_t>* token = nullptr);
    // True: the message will never be sent, and `done` is not called.
    bool withdraw(uint64_t token);
    // Calls back when a session is up and it is known whether the host lane can be used, or why
    // there will be none.
    void whenReady(Done ready);
    bool ready() const { return ready_.load(std::memory_order_acquire); }
    // Null where the peer's process cannot be attached to; hostReason() says why.
    std::shared_ptr<HostPeer> host();
    std::string hostReason();
    // Both at one moment, and why there is no session (any more) that they could be of.
    struct HostChoice {
        std::shared_ptr<HostPeer> peer;
        std::string reason;
        Status session;
    };
    HostChoice hostChoice();
    // What is, or will be, mapped of the plan's remote regions; null for those it does not touch.
    std::vector<RegionMapPtr> mapRegions(const TransferPlan& plan);
    // Calls back when the peer has answered for all regions it was asked for.
    void whenMapped(Done done);
    // Tells the peer to let go of these regions, of which it may have mapped some.
    void announceRevoked(std::span<const std::pair<uint64_t, uint32_t>> regions);

    // The data connections, and the jobs that wait for them.
    StreamPool& stream() { return *pool_; }

    // Reads what has come to the session, where nobody else does.
    void pollReady() override;
    void resumeReads() override;
    // Ends the session for good and everything that waits; the engine forgets the link. Any
    // thread; takes effect on the reactor thread.
    void close(const Status& why, const std::string& close_reason);

    // For the engine's Admission. Reactor thread.
    std::optional<Earlier> earlier();
    std::optional<base::Digest> sessionKey();
    bool up();
    bool dialling() const { return dialer_ != nullptr && dialer_->connected(); }
    void adopt(ConnectResult opened);
    void serve(ConnectResult opened);          // a data connection of the peer
    void dataConnected(ConnectResult opened);  // one of our own
    void lost(const Status& why);
    // Stops everything on the reactor; the last use of the engine. Reactor thread.
    void detachEngine(const Status& why);

    struct Counts {
        uint64_t connections = 0;    // the session's, and data connections opened from here
        uint64_t notifications = 0;  // that the peer has not confirmed
    };
    Counts counts();

  private:
    Link(EngineImpl& engine, Identity peer);
    static constexpr uint64_t kCreditStep = 1 << 20;

    // What came over the control connection of that epoch and number.
    struct Incoming {
        uint64_t epoch = 0;
        uint64_t connection = 0;
        Session::Event event;
        std::vector<base::Fd> descriptors;
    };

    // Session and control connection.
    Status readControl() NIXL_REQUIRES(mutex_);
    void flush() NIXL_REQUIRES(mutex_);
    void collect() NIXL_REQUIRES(mutex_);
    void dispatch();
    void handle(Incoming& incoming);
    void onFrame(const Incoming& incoming);
    void onBye(uint64_t connection, const Status& why);
    void deliver(Session::Event& event, uint64_t epoch);
    void giveCredit(uint64_t epoch, uint64_t cost);
    void onControl();
    // While a caller polls the reactor leaves this session to it.
    void pauseReads();
    void updateWatch(bool reading, bool writing) NIXL_REQUIRES(mutex_);
    void dropControl() NIXL_REQUIRES(mutex_);
    void controlLost(const Status& why);
    void armTick(Time when);
    void onTick();
    bool wanted() NIXL_REQUIRES(mutex_);
    // Connecting.
    void want();
    void dial();
    void dialFailed(const ConnectFailure& why);
    // Host lane.
    void offerHost(const base::SocketPeer& process);
    void onHostOffer(std::string_view body, const std::vector<base::Fd>& descriptors);
    void decideHost(std::shared_ptr<HostPeer> host, std::string reason);
    void watchProcess(base::Fd pidfd);
    void forgetProcess();
    // The peer's process has ended: this incarnation of it does not come back.
    void processEndedNow();
    // Its shared mappings.
    void askMaps() NIXL_REQUIRES(mutex_);
    void onMapRequest(std::string_view body);
    void answerMaps(const MapRequest& request, uint64_t connection);
    void onMapReply(std::string_view body, const std::vector<base::Fd>& descriptors);
    void violated(const Status& why);
    // Opens data connections for the pool.
    void wantData();
    void dialData();

    EngineImpl& engine_;
    const Identity peer_;
    std::atomic<bool> ready_{false};

    Mutex mutex_;
    bool detached_ NIXL_GUARDED_BY(mutex_) = false;  // the engine must not be used any more
    Status gone_ NIXL_GUARDED_BY(mutex_);            // not OK: why there is never a session again
    Session session_ NIXL_GUARDED_BY(mutex_);
    std::optional<Endpoints> endpoints_ NIXL_GUARDED_BY(mutex_);
    GrantsPtr grants_ NIXL_GUARDED_BY(mutex_);
    base::Digest key_ NIXL_GUARDED_BY(mutex_){};
    std::unique_ptr<base::Channel> channel_ NIXL_GUARDED_BY(mutex_);
    uint64_t watch_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t pollId_ NIXL_GUARDED_BY(mutex_) = 0;  // in the poll set
    bool readWatched_ NIXL_GUARDED_BY(mutex_) = false;
    bool writeWatched_ NIXL_GUARDED_BY(mutex_) = false;
    std::string out_ NIXL_GUARDED_BY(mutex_);
    size_t outSent_ NIXL_GUARDED_BY(mutex_) = 0;
    std::map<uint64_t, Done> tokens_ NIXL_GUARDED_BY(mutex_);
    uint64_t nextToken_ NIXL_GUARDED_BY(mutex_) = 1;
    uint64_t creditOwed_ NIXL_GUARDED_BY(mutex_) = 0;
    std::vector<Done> waiting_ NIXL_GUARDED_BY(mutex_);
    std::deque<Incoming> events_ NIXL_GUARDED_BY(mutex_);
    bool dispatching_ NIXL_GUARDED_BY(mutex_) = false;
    bool hostDecided_ NIXL_GUARDED_BY(mutex_) = false;
    std::shared_ptr<HostPeer> host_ NIXL_GUARDED_BY(mutex_);
    std::string hostReason_ NIXL_GUARDED_BY(mutex_) = "no session yet";
    base::SocketPeer process_ NIXL_GUARDED_BY(mutex_);
    base::Fd processFd_ NIXL_GUARDED_BY(mutex_);
    HostMaps maps_ NIXL_GUARDED_BY(mutex_);
    std::vector<Done> mapWaiting_ NIXL_GUARDED_BY(mutex_);
    bool answering_ NIXL_GUARDED_BY(mutex_) = false;   // a request of the peer for maps
    uint64_t connection_ NIXL_GUARDED_BY(mutex_) = 0;  // counts control connections
    std::unordered_map<uint64_t, uint32_t> given_ NIXL_GUARDED_BY(mutex_);  // regions, generations
    std::vector<base::Fd> outDescriptors_ NIXL_GUARDED_BY(mutex_);  // go with the next bytes sent
    HandshakeResult handshake_ NIXL_GUARDED_BY(mutex_);
    std::optional<base::Target> target_ NIXL_GUARDED_BY(mutex_);  // where the last dial succeeded

    std::shared_ptr<StreamPool> pool_;  // set once, by make()

    // Reactor thread only.
    std::shared_ptr<Dialer> dialer_;
    std::shared_ptr<Dialer> dataDialer_;
    std::optional<Time> wantedSince_;
    std::chrono::milliseconds backoff_{0};
    uint64_t retryTimer_ = 0;
    uint64_t tickTimer_ = 0;
    uint64_t graceTimer_ = 0;
    base::Fd pidfd_;
    uint64_t pidWatch_ = 0;
    std::shared_ptr<PeerMarks> marks_;
};

}  // namespace nixl::peer
