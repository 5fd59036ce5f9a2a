// The session with one incarnation of a peer and the control connection beneath it: what is sent
// and received, the descriptors that go along, and the events in their order. Connections come and
// go, each with a number; the session goes on until it fails.
//
// Threads: any, unless said otherwise; connections change on the reactor thread only. The owner is
// called without a lock, by whichever thread brought the bytes, and may call back.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/services.h"

#include "base/descriptor.h"
#include "base/mutex.h"
#include "base/poll_set.h"
#include "connect/dialer.h"
#include "peer/engine.h"
#include "session/session.h"

namespace nixl::peer {

class ControlLink final : public base::PollSet::Member,
                          public std::enable_shared_from_this<ControlLink> {
  public:
    class Owner {
      public:
        virtual ~Owner() = default;
        // A notification for the agent; `credit` goes when the application has taken it.
        virtual void notified(std::string message, std::shared_ptr<void> credit) = 0;
        // A frame that came over the connection of this number.
        virtual void onFrame(uint64_t connection,
                             FrameType type,
                             std::string_view body,
                             const std::vector<base::Fd>& descriptors) = 0;
        // Reactor thread: the connection broke, or (INVALID_PARAM) the peer violates the protocol.
        virtual void controlLost(const Status& why) = 0;
        // Reactor thread: the peer ended the session for good, or is silent.
        virtual void sessionEnded(const Status& why) = 0;
        // Reactor thread, now and then while there is a connection.
        virtual void ticked() = 0;
    };
    struct Context {
        std::string peer;  // its name
        Reactor& reactor;
        base::PollSet& pollSet;
        SessionLimits limits;
    };
    ControlLink(Context context, std::weak_ptr<Owner> owner);
    ~ControlLink() override;
    ControlLink(const ControlLink&) = delete;
    ControlLink& operator=(const ControlLink&) = delete;

    // Queues a notification, also while there is no connection; `token`, where given, is set before
    // `done` can be called.
    Status send(std::string message, Done done, std::atomic<uint64_t>* token);
    // True: the message will never be sent, and its `done` is not called.
    bool withdraw(uint64_t token);
    // Sends a frame and what goes with it over the connection of this number; false where another
    // one, or none, has taken its place.
    bool sendFrame(uint64_t connection,
                   FrameType type,
                   std::string_view body,
                   std::vector<base::Fd> descriptors);

    bool up();
    // Whether the connection of this number is in use.
    bool inUse(uint64_t connection);
    uint64_t waiting();  // notifications that the peer has not confirmed
    // For the handshake of the next connection; empty before the first.
    std::optional<Earlier> earlier();
    std::optional<base::Digest> key();  // of the connection in use

    // All below: reactor thread.
    // Lets go of the connection in use; the number of the next.
    uint64_t replace();
    // Puts a connection to use. What came early is handled by begin().
    Status adopt(ConnectResult& opened);
    Status begin(std::string_view early);
    // Does what is due, and goes on doing so.
    void tick();
    // The connection is gone, the session may go on; false where there was none.
    bool drop();
    // The session is gone: what waits fails with `why`, by dispatch(). True where there was one.
    bool fail(const Status& why);
    // Says that the session ends for good.
    void bye(std::string_view body);
    // Handles events in their order, whichever thread brought them.
    void dispatch();

    // Reads what has come, where nobody else does.
    void pollReady() override;
    void resumeReads() override;

  private:
    static constexpr uint64_t kCreditStep = 1 << 20;

    // What came over the connection of that epoch and number.
    struct Incoming {
        uint64_t epoch = 0;
        uint64_t connection = 0;
        Session::Event event;
        std::vector<base::Fd> descriptors;
    };

    Status read() NIXL_REQUIRES(mutex_);
    void flush() NIXL_REQUIRES(mutex_);
    void collect() NIXL_REQUIRES(mutex_);
    void close() NIXL_REQUIRES(mutex_);
    void updateWatch(bool reading, bool writing) NIXL_REQUIRES(mutex_);
    bool isLatest(uint64_t connection);
    void handle(Incoming& incoming);
    void deliver(Session::Event& event, uint64_t epoch);
    void giveCredit(uint64_t epoch, uint64_t cost);
    void onReady();
    // While a caller polls the reactor leaves this session to it.
    void pauseReads();
    void stopTicking();

    const Context context_;
    const std::weak_ptr<Owner> owner_;

    Mutex mutex_;
    Session session_ NIXL_GUARDED_BY(mutex_);
    base::Digest key_ NIXL_GUARDED_BY(mutex_){};
    std::unique_ptr<base::Channel> channel_ NIXL_GUARDED_BY(mutex_);
    uint64_t connection_ NIXL_GUARDED_BY(mutex_) = 0;  // counts connections
    uint64_t watch_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t pollId_ NIXL_GUARDED_BY(mutex_) = 0;  // in the poll set
    bool readWatched_ NIXL_GUARDED_BY(mutex_) = false;
    bool writeWatched_ NIXL_GUARDED_BY(mutex_) = false;
    std::string out_ NIXL_GUARDED_BY(mutex_);
    size_t outSent_ NIXL_GUARDED_BY(mutex_) = 0;
    std::vector<base::Fd> outDescriptors_ NIXL_GUARDED_BY(mutex_);  // go with the next bytes sent
    std::map<uint64_t, Done> tokens_ NIXL_GUARDED_BY(mutex_);
    uint64_t nextToken_ NIXL_GUARDED_BY(mutex_) = 1;
    uint64_t creditOwed_ NIXL_GUARDED_BY(mutex_) = 0;
    std::deque<Incoming> events_ NIXL_GUARDED_BY(mutex_);
    bool dispatching_ NIXL_GUARDED_BY(mutex_) = false;

    uint64_t tickTimer_ = 0;  // reactor thread only
};

}  // namespace nixl::peer
