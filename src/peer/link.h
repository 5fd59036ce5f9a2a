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
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/poll_set.h"
#include "connect/dialer.h"
#include "connect/endpoints.h"
#include "lanes/host/attachment.h"
#include "lanes/stream/pool.h"
#include "peer/engine.h"
#include "session/session.h"

namespace nixl::peer {

class Link final : public base::PollSet::Member,
                   public HostControl,
                   public std::enable_shared_from_this<Link> {
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
    GrantsPtr grants() override;  // null where the agent does not know the peer's metadata

    // `token`, where given, is set before `done` can be called.
    Status send(std::string message, Done done, std::atomic<uint64_t>* token = nullptr);
    // True: the message will never be sent, and `done` is not called.
    bool withdraw(uint64_t token);
    // Calls back when a session is up and it is known whether the host lane can be used, or why
    // there will be none.
    void whenReady(Done ready);
    bool ready() const { return ready_.load(std::memory_order_acquire); }
    // The attachment to the peer's process.
    HostAttachment& host() { return *attachment_; }
    // What it chose, and why there is no session (any more) that it could be of.
    struct HostChoice {
        std::shared_ptr<HostPeer> peer;
        std::string reason;
        Status session;
    };
    HostChoice hostChoice();

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
    // Of the attachment.
    bool sendFrame(uint64_t connection,
                   FrameType type,
                   std::string_view body,
                   std::vector<base::Fd> descriptors) override;
    void hostDecided(uint64_t connection) override;
    void violated(const Status& why) override;
    // The peer's process has ended: this incarnation of it does not come back.
    void processEndedNow() override;
    // Why the peer's process is not one of this host; empty where it is.
    std::string elsewhere(const base::SocketPeer& process);
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
    uint64_t connection_ NIXL_GUARDED_BY(mutex_) = 0;               // counts control connections
    std::vector<base::Fd> outDescriptors_ NIXL_GUARDED_BY(mutex_);  // go with the next bytes sent
    std::optional<base::Target> target_ NIXL_GUARDED_BY(mutex_);    // where the last dial succeeded

    // Set once, by make().
    std::shared_ptr<StreamPool> pool_;
    std::shared_ptr<HostAttachment> attachment_;

    // Reactor thread only.
    std::shared_ptr<Dialer> dialer_;
    std::shared_ptr<Dialer> dataDialer_;
    std::optional<Time> wantedSince_;
    std::chrono::milliseconds backoff_{0};
    uint64_t retryTimer_ = 0;
    uint64_t tickTimer_ = 0;
    uint64_t graceTimer_ = 0;
};

}  // namespace nixl::peer
