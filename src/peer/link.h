// Everything this agent has with one incarnation of a peer: the control link, the attachment to its
// process and the stream pool, each with a lock of its own; this composes them, connects, and knows
// what the agent knows of the peer. Locks are taken in the order attachment, link, control link.
//
// Threads: public calls from any thread unless said otherwise. Connections are opened and closed
// on the reactor thread only. No lock is held over a callback.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "connect/dialer.h"
#include "connect/endpoints.h"
#include "lanes/host/attachment.h"
#include "lanes/stream/pool.h"
#include "peer/control_link.h"
#include "peer/engine.h"

namespace nixl::peer {

class Link final : public ControlLink::Owner,
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
    // Of a peer on the host that was booted as this.
    bool hasEndpoints(const Key& boot_id);
    GrantsPtr grants() override;  // null where the agent does not know the peer's metadata

    // `token`, where given, is set before `done` can be called.
    Status send(std::string message, Done done, std::atomic<uint64_t>* token = nullptr);
    // True: the message will never be sent, and `done` is not called.
    bool withdraw(uint64_t token) { return control_->withdraw(token); }
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

    ControlLink& control() { return *control_; }
    // The data connections, and the jobs that wait for them.
    StreamPool& stream() { return *pool_; }

    // Ends the session for good and everything that waits; the engine forgets the link. Any
    // thread; takes effect on the reactor thread.
    void close(const Status& why, const std::string& close_reason);

    // For the engine's Admission. Reactor thread.
    std::optional<Earlier> earlier() { return control_->earlier(); }
    std::optional<base::Digest> sessionKey() { return control_->key(); }
    bool up() { return control_->up(); }
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
    // Of the control link.
    void notified(std::string message, std::shared_ptr<void> credit) override;
    void onFrame(uint64_t connection,
                 FrameType type,
                 std::string_view body,
                 const std::vector<base::Fd>& descriptors) override;
    void controlLost(const Status& why) override;
    void sessionEnded(const Status& why) override;
    void ticked() override;
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
    void dataDialFailed(const ConnectFailure& why);

    EngineImpl& engine_;
    const Identity peer_;
    std::atomic<bool> ready_{false};

    Mutex mutex_;
    bool detached_ NIXL_GUARDED_BY(mutex_) = false;  // the engine must not be used any more
    Status gone_ NIXL_GUARDED_BY(mutex_);            // not OK: why there is never a session again
    std::optional<Endpoints> endpoints_ NIXL_GUARDED_BY(mutex_);
    GrantsPtr grants_ NIXL_GUARDED_BY(mutex_);
    std::vector<Done> waiting_ NIXL_GUARDED_BY(mutex_);
    std::optional<base::Target> target_ NIXL_GUARDED_BY(mutex_);  // where the last dial succeeded

    // Set once, by make().
    std::shared_ptr<ControlLink> control_;
    std::shared_ptr<StreamPool> pool_;
    std::shared_ptr<HostAttachment> attachment_;

    // Reactor thread only.
    std::shared_ptr<Dialer> dialer_;
    std::shared_ptr<Dialer> dataDialer_;
    std::optional<Time> wantedSince_;
    std::chrono::milliseconds backoff_{0};
    uint64_t retryTimer_ = 0;
    std::optional<Time> dataWantedSince_;  // while no data connection could be opened
    std::chrono::milliseconds dataBackoff_{0};
    uint64_t dataRetryTimer_ = 0;
    uint64_t graceTimer_ = 0;
};

}  // namespace nixl::peer
