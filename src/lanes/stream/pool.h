// The data connections to one peer that were opened from here, the jobs that wait for them, and the
// connections of the peer that are served here. Owned by the peer's link; thread-safe, with a lock
// of its own that is taken inside a connection's lock and never around one.
//
// Two things hold at any moment; testing/sim/sim_pool.cpp tries them on this code:
//  1. Every queued job has a live connection that drives it, or one has been asked for: `open` was
//     called and neither adopt() nor fail() has answered it yet.
//  2. When cancel() returns, every connection that ever took a part of the job has let go of it: no
//     byte of its memory moves any more.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "lanes/stream/connection.h"
#include "lanes/stream/job.h"
#include "session/network_access.h"

namespace nixl::peer {

struct StreamPoolConfig {
    std::string peer;          // its name, for messages
    unsigned connections = 0;  // the most that are opened; 0: chosen
    std::string congestion;    // of TCP; empty: the system's
};

class StreamPool final : public std::enable_shared_from_this<StreamPool> {
  public:
    // `open` asks for a connection, without locks and from any thread; it may be asked while one is
    // being opened. What comes of it is told by adopt() or fail().
    StreamPool(StreamPoolConfig config,
               DataLoop& loop,
               NetworkAccess& access,
               std::function<void()> open);
    StreamPool(const StreamPool&) = delete;
    StreamPool& operator=(const StreamPool&) = delete;

    // Queues a job; what goes without waiting is sent at once, at most `inline_bytes`.
    void start(const std::shared_ptr<StreamJob>& job, uint64_t inline_bytes);
    // No byte of the job's memory moves once it returns.
    void cancel(const std::shared_ptr<StreamJob>& job, const Status& why);
    // Ends the jobs, those with parts under way when these are back, and all connections.
    void fail(const Status& why);
    // As fail(), where no connection is there: the others do without the one that was not opened.
    void openFailed(const Status& why);

    // A connection that was opened from here, after its handshake.
    void adopt(std::unique_ptr<base::Channel> channel, const base::Digest& key);
    // One that the peer opened, with bytes that came behind its handshake.
    void serve(std::unique_ptr<base::Channel> channel,
               const base::Digest& key,
               std::string_view early);
    // See ClientConnection::expire.
    void expire(Reactor::Clock::time_point now, std::chrono::milliseconds patience);

    bool waiting();        // jobs are queued
    size_t connections();  // opened from here and alive

    // Connections of the peer; beyond them the one that is idle for longest ends.
    static constexpr unsigned kMaxServed = 64;

  private:
    using Client = std::shared_ptr<ClientConnection>;

    void feed(StreamClient& client);
    void gone(const ClientConnection* connection, const Status& why);
    std::vector<Client> clients();
    bool morePay() const NIXL_REQUIRES(mutex_);
    void endIdlestServed() NIXL_REQUIRES(mutex_);

    const StreamPoolConfig config_;
    DataLoop& loop_;
    NetworkAccess& access_;
    const std::function<void()> open_;

    Mutex mutex_;
    StreamJobQueue jobs_ NIXL_GUARDED_BY(mutex_);
    std::vector<Client> clients_ NIXL_GUARDED_BY(mutex_);
    // Were shut down and may still have parts: a thread that is inside one moves bytes until it
    // sees the end.
    std::vector<Client> leaving_ NIXL_GUARDED_BY(mutex_);
    std::vector<std::weak_ptr<TargetConnection>> served_ NIXL_GUARDED_BY(mutex_);
    size_t nextClient_ NIXL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nixl::peer
