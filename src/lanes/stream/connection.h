// The two kinds of data connections: the target's, which serves a peer's requests, and the
// initiator's, which takes parts of transfers from its link. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nixl/services.h"

#include "base/mutex.h"
#include "lanes/stream/client.h"
#include "lanes/stream/loop.h"
#include "lanes/stream/target.h"

namespace nixl::peer {

class TargetConnection final : public DataConnection {
  public:
    // `gone` is called once, when the connection has left the loop.
    TargetConnection(std::unique_ptr<base::Channel> channel,
                     NetworkAccess& access,
                     const base::Digest& key,
                     DataLoop& loop,
                     std::string_view early_bytes,
                     std::function<void(const Status&)> gone);
    uint64_t serve() override;
    void pollReady() override;
    void end(const Status& why) override;
    // When the peer last asked for anything here.
    Reactor::Clock::time_point lastUsed() const {
        return lastUsed_.load(std::memory_order_relaxed);
    }

  private:
    // Moves about `budget` bytes and waits for what comes next; an error ends the connection.
    Status turn(uint64_t budget, uint64_t& moved) NIXL_REQUIRES(mutex_);
    void leave(const Status& why);
    Status move(uint64_t& budget) NIXL_REQUIRES(mutex_);
    Status sendSome(uint64_t& budget) NIXL_REQUIRES(mutex_);
    Status receiveSome(uint64_t& budget, bool& dry) NIXL_REQUIRES(mutex_);

    Mutex mutex_;
    StreamTarget target_ NIXL_GUARDED_BY(mutex_);
    std::string early_ NIXL_GUARDED_BY(mutex_);
    bool ended_ NIXL_GUARDED_BY(mutex_) = false;
    uint64_t moved_ NIXL_GUARDED_BY(mutex_) = 0;  // bytes, both ways
    std::atomic<Reactor::Clock::time_point> lastUsed_{Reactor::Clock::now()};
    std::function<void(const Status&)> gone_;
};

class ClientConnection final : public DataConnection {
  public:
    // Where parts come from: fills the client while it has room. Called with the connection's lock.
    using Feed = std::function<void(StreamClient&)>;
    ClientConnection(std::unique_ptr<base::Channel> channel,
                     std::string peer_name,
                     const base::Digest& key,
                     DataLoop& loop,
                     Feed feed);
    // Called once, when the connection has left the loop. Before the connection is added to it.
    void onGone(std::function<void(const Status&)> gone) { gone_ = std::move(gone); }
    uint64_t serve() override;
    void pollReady() override;
    void end(const Status& why) override;
    // There may be something to take: sends at once what goes without waiting, at most
    // `inline_bytes`; the loop's threads do the rest.
    void wake(uint64_t inline_bytes);
    // Ends the connection where answers are owed and nothing has moved for `patience`: nobody may
    // be there any more. Called now and then, always by the same thread.
    void expire(Reactor::Clock::time_point now, std::chrono::milliseconds patience);
    bool ended();
    // See StreamClient::cancel.
    void cancel(const PartOwner* owner);
    bool has(const StreamClient& client) const { return &client == &client_; }

  private:
    // Send and receive about `budget` bytes, and count it down.
    Status sendSome(uint64_t& budget) NIXL_REQUIRES(mutex_);
    Status receiveSome(uint64_t& budget) NIXL_REQUIRES(mutex_);
    Status move(uint64_t budget) NIXL_REQUIRES(mutex_);
    void arm() NIXL_REQUIRES(mutex_);
    void serveWakes();
    void wakeLocked(uint64_t inline_bytes) NIXL_RELEASE(mutex_);
    struct Report {
        bool gone = false;
        Status status;
        std::vector<FinishedPart> finished;
    };
    Report finishTurn(Status status) NIXL_REQUIRES(mutex_);
    void dispatchCompletions(Report report);

    Mutex mutex_;
    StreamClient client_ NIXL_GUARDED_BY(mutex_);
    bool ended_ NIXL_GUARDED_BY(mutex_) = false;
    uint64_t moved_ NIXL_GUARDED_BY(mutex_) = 0;  // bytes, both ways
    // Of the last expire() that saw something move.
    uint64_t seenMoved_ NIXL_GUARDED_BY(mutex_) = 0;
    size_t seenUnsent_ NIXL_GUARDED_BY(mutex_) = 0;
    Reactor::Clock::time_point seenAt_ NIXL_GUARDED_BY(mutex_);
    std::atomic<bool> woken_{false};
    std::vector<FinishedPart> spare_ NIXL_GUARDED_BY(mutex_);  // empty; its memory is used again
    const Feed feed_;
    std::function<void(const Status&)> gone_;
};

}  // namespace nixl::peer
