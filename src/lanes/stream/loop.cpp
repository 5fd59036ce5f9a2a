// See loop.h.
#include "lanes/stream/loop.h"

#include <cerrno>
#include <string>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/system_error.h"

namespace nixl::peer {

DataLoop::~DataLoop() {
    stop(Status::canceled("closed"));
}

void DataLoop::stop(const Status& why) {
    if (process_.forked()) {
        static_cast<void>(threads_.release());  // NOLINT(bugprone-unused-return-value)
        threads_ = std::make_unique<std::vector<std::thread>>();
        return;
    }
    {
        const MutexLock lock(mutex_);  // add() starts threads under it
        stop_.store(true);
    }
    if (wake_) {
        const uint64_t one = 1;
        static_cast<void>(!write(wake_.get(), &one, sizeof(one)));
    }
    for (std::thread& thread : *threads_) {
        thread.join();
    }
    threads_->clear();
    std::unordered_map<uint64_t, std::shared_ptr<DataConnection>> gone;
    {
        const MutexLock lock(mutex_);
        gone.swap(connections_);
    }
    for (const auto& [id, connection] : gone) {
        connection->end(why);
    }
}

Status DataLoop::start() {
    if (!epoll_) {
        base::Fd epoll(epoll_create1(EPOLL_CLOEXEC));
        base::Fd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        epoll_event event{};
        event.events = EPOLLIN;  // level-triggered: once it is readable every thread sees it
        event.data.u64 = 0;
        if (!epoll || !wake || epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) < 0) {
            return base::systemError("stream lane: epoll", errno);
        }
        epoll_ = std::move(epoll);
        wake_ = std::move(wake);
    }
    while (threads_->size() < wanted_) {
        auto thread =
            base::startThread("nixl-stream", base::Priority::RESPONSIVE, [this] { loop(); });
        if (!thread.ok()) {
            return threads_->empty() ? thread.status() : Status();
        }
        threads_->push_back(std::move(thread).value());
    }
    return {};
}

Status DataLoop::add(const std::shared_ptr<DataConnection>& connection, uint32_t events) {
    const MutexLock lock(mutex_);
    if (stop_.load()) {
        return Status::canceled("the agent ends");
    }
    NIXL_RETURN_IF_ERROR(start());
    connection->id_ = nextId_++;
    epoll_event event{};
    event.events = events | EPOLLONESHOT;
    event.data.u64 = connection->id_;
    connections_.emplace(connection->id_, connection);
    connection->pollId_ = pollSet_.add(connection->fd(), connection);
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection->fd(), &event) < 0) {
        const Status status = base::systemError("stream lane: epoll_ctl", errno);
        pollSet_.remove(connection->pollId_, connection->fd());
        connections_.erase(connection->id_);
        return status;
    }
    return {};
}

void DataConnection::chooseCongestion(const std::string& wanted) {
    congestion_ = wanted;
    chosen_ = false;
    base::chooseCongestion(channel_->fd(), congestion_);
}

void DataConnection::resumeReads() {
    loop_.resumeReads(*this);
}

void DataLoop::arm(const DataConnection& connection, uint32_t events) {
    epoll_event event{};
    event.events = events | EPOLLONESHOT;
    event.data.u64 = connection.id_;
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd(), &event);
}

void DataLoop::rearm(DataConnection& connection, uint32_t events, bool brief) {
    const bool leave = brief && connection.pollId_ != 0 && pollSet_.polled();
    {
        const MutexLock lock(connection.armMutex_);
        const bool room = leave && (events & EPOLLOUT) != 0;
        if (connection.lookedForRoom_ != room) {
            connection.lookedForRoom_ = room;
            pollSet_.lookForRoom(connection.pollId_, connection.fd(), room);
        }
        connection.left_ = leave;
        connection.events_ = events;
        if (!leave) {
            return arm(connection, events);
        }
    }
    pollSet_.guard();
}

void DataLoop::resumeReads(DataConnection& connection) {
    const MutexLock lock(connection.armMutex_);
    if (std::exchange(connection.left_, false)) {
        arm(connection, connection.events_);
    }
}

void DataLoop::remove(const DataConnection& connection) {
    std::shared_ptr<DataConnection> gone;
    const MutexLock lock(mutex_);
    const auto found = connections_.find(connection.id_);
    if (found != connections_.end()) {
        pollSet_.remove(connection.pollId_, connection.fd());
        epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection.fd(), nullptr);
        gone = std::move(found->second);
        connections_.erase(found);
    }
}

// One at a time: the next ready connection is another thread's.
int DataLoop::nextEvent(epoll_event& event, uint64_t& at_a_stretch) {
    if (busyPoll_.enabled() && !spinning_.exchange(true)) {
        int count = 0;
        const bool seen = busyPoll_.spin(base::kNoDeadline, [&] {
            count = epoll_wait(epoll_.get(), &event, 1, 0);
            return count != 0;
        });
        spinning_.store(false);
        if (seen) {
            return count;
        }
    }
    if (at_a_stretch > base::kBulkBytes) {
        if (const int count = epoll_wait(epoll_.get(), &event, 1, 0); count != 0) {
            return count;  // there is more to do: bulk work goes on as such
        }
        base::workInBulk(false);
    }
    at_a_stretch = 0;
    busyPoll_.countSleep();
    return epoll_wait(epoll_.get(), &event, 1, -1);
}

bool DataLoop::serveReady() {
    epoll_event event{};
    if (epoll_wait(epoll_.get(), &event, 1, 0) <= 0) {
        return false;
    }
    serve(event.data.u64);
    return true;
}

uint64_t DataLoop::serve(uint64_t id) {
    std::shared_ptr<DataConnection> connection;
    {
        const MutexLock lock(mutex_);
        const auto found = connections_.find(id);
        if (found != connections_.end()) {
            connection = found->second;
        }
    }
    return connection != nullptr ? connection->serve() : 0;
}

void DataLoop::loop() {
    uint64_t at_a_stretch = 0;  // bytes moved since nothing was to be done
    while (!stop_.load()) {
        epoll_event event{};
        const int count = nextEvent(event, at_a_stretch);
        if (count < 0 && errno != EINTR && !stop_.load()) {
            if (!broken_.exchange(true)) {
                base::log(LogLevel::ERROR,
                          "stream lane: its epoll descriptor was closed by somebody else");
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
        const uint64_t id = event.data.u64;  // a copy: the event is packed
        if (count <= 0 || id == 0) {
            continue;
        }
        if (const uint64_t moved = serve(id); moved > 0) {
            at_a_stretch += moved;
            base::workInBulk(at_a_stretch > base::kBulkBytes);
        }
    }
}

}  // namespace nixl::peer
