// The threads that move the stream lane's payload: a few on one epoll set, each connection served
// by one of them at a time. They answer small requests at once and take batch priority while they
// move much. While callers poll they are not woken for small ones: see poll_set.h. Owned by the
// engine; thread-safe. Threads start with the first connection.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include <sys/epoll.h>

#include "nixl/error.h"

#include "base/busy_poll.h"
#include "base/mutex.h"
#include "base/poll_set.h"
#include "base/socket.h"
#include "base/threads.h"

namespace nixl::peer {

class DataLoop;

// One connection in the loop. serve() and whoever else wants to work on the connection take its
// lock.
class DataConnection : public base::PollSet::Member {
  public:
    DataConnection(std::unique_ptr<base::Channel> channel, DataLoop& loop)
        : channel_(std::move(channel)), loop_(loop) {}
    // Moves bytes until nothing moves or others should have a turn; ends with the loop's rearm()
    // or remove(). Returns how many it has moved.
    virtual uint64_t serve() = 0;
    void resumeReads() override;
    // The loop has ended: nobody serves it any more.
    virtual void end(const Status& why) = 0;

    // Ends the connection; its owner hears of it through serve().
    void shutdown() { channel_->shutdown(); }
    int fd() const { return channel_->fd(); }
    // See base::chooseCongestion: now, and once more when enough has moved to know how near the
    // peer is. A handshake on a busy machine takes longer than the path does. Before it is in the
    // loop.
    void chooseCongestion(const std::string& wanted);

  protected:
    friend class DataLoop;
    // So many bytes have moved in all. With the connection's lock.
    void movedInAll(uint64_t bytes) {
        if (bytes >= kBytesToKnow && !chosen_) {
            chosen_ = true;
            base::chooseCongestion(channel_->fd(), congestion_);
        }
    }
    static constexpr uint64_t kBytesToKnow = 1 << 20;
    std::unique_ptr<base::Channel> channel_;
    DataLoop& loop_;

  private:
    std::string congestion_;
    bool chosen_ = true;   // for good
    uint64_t id_ = 0;      // in the loop; set before the first serve()
    uint64_t pollId_ = 0;  // in the poll set
    Mutex armMutex_;
    // Left to callers who poll, and what they wait for.
    bool left_ NIXL_GUARDED_BY(armMutex_) = false;
    uint32_t events_ NIXL_GUARDED_BY(armMutex_) = 0;
    bool lookedForRoom_ NIXL_GUARDED_BY(armMutex_) = false;
};

class DataLoop {
  public:
    // `busy_poll`: how long one of the threads looks again before it sleeps.
    DataLoop(unsigned threads, base::PollSet& poll_set, std::chrono::microseconds busy_poll = {})
        : wanted_(threads), pollSet_(poll_set), busyPoll_(busy_poll) {}
    // REQUIRES: no connection is used any more.
    ~DataLoop();
    DataLoop(const DataLoop&) = delete;
    DataLoop& operator=(const DataLoop&) = delete;

    // Takes part in the ownership until remove().
    Status add(const std::shared_ptr<DataConnection>& connection, uint32_t events);
    // Waits for `events` once more. Any thread, also while another serves. `brief`: what it waits
    // for is soon done, so callers who poll may do it.
    void rearm(DataConnection& connection, uint32_t events, bool brief);
    void resumeReads(DataConnection& connection);
    void remove(const DataConnection& connection);
    // Payload that a stream thread has moved is seen by whoever hears of it on another thread, also
    // where the word comes from another process: said after moving, asked before telling.
    void releaseMoved() { moved_.fetch_add(1, std::memory_order_acq_rel); }
    void acquireMoved() { moved_.fetch_add(0, std::memory_order_acq_rel); }
    // Serves one connection that is ready, where one is: for who has no threads in the loop.
    bool serveReady();
    // Ends the threads, then the connections.
    void stop(const Status& why);
    const base::BusyPoll& busyPoll() const { return busyPoll_; }

  private:
    Status start() NIXL_REQUIRES(mutex_);
    void loop();
    uint64_t serve(uint64_t id);
    int nextEvent(epoll_event& event, uint64_t& at_a_stretch);

    void arm(const DataConnection& connection, uint32_t events);

    const unsigned wanted_;
    base::PollSet& pollSet_;
    const base::ProcessMark process_;
    Mutex mutex_;
    base::Fd epoll_;
    base::Fd wake_;
    std::atomic<bool> stop_{false};
    std::atomic<bool> broken_{false};  // said so
    std::atomic<uint64_t> moved_{0};
    base::BusyPoll busyPoll_;
    std::atomic<bool> spinning_{false};
    uint64_t nextId_ NIXL_GUARDED_BY(mutex_) = 1;
    std::unordered_map<uint64_t, std::shared_ptr<DataConnection>> connections_
        NIXL_GUARDED_BY(mutex_);
    std::unique_ptr<std::vector<std::thread>> threads_ =
        std::make_unique<std::vector<std::thread>>();
};

}  // namespace nixl::peer
