// See connection.h.
#include "lanes/stream/connection.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <sys/epoll.h>

namespace nixl::peer {

namespace {

constexpr size_t kVectors = 256;
// Bytes moved in one go before other connections get their turn.
constexpr uint64_t kTurn = 4 << 20;
// The same for callers who poll: they come again, and may hold locks of their own (such as the
// GIL).
constexpr uint64_t kHelpTurn = 256 << 10;
// So much is left to callers who poll; with more the threads take part, and send alone. What two
// processors send on one connection in turn may arrive out of order (between network namespaces:
// each has a queue of its own), and the congestion control takes that for loss: 64 MiB went at 2.2
// GB/s where they go at 4 to 5 now.
constexpr uint64_t kBrief = 1 << 20;
// A post sends at once while no more than this is under way.
constexpr uint64_t kInlineBytes = 256 << 10;

size_t totalOf(const iovec* vectors, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; ++i) {
        total += vectors[i].iov_len;
    }
    return total;
}

}  // namespace

TargetConnection::TargetConnection(std::unique_ptr<base::Channel> channel,
                                   NetworkAccess& access,
                                   const base::Digest& key,
                                   DataLoop& loop,
                                   std::string_view early_bytes,
                                   std::function<void(const Status&)> gone)
    : DataConnection(std::move(channel), loop),
      target_(access, key),
      early_(early_bytes),
      gone_(std::move(gone)) {}

Status TargetConnection::sendSome(uint64_t& budget) {
    iovec vectors[kVectors];
    while (target_.wantsOutput() && budget > 0) {
        const size_t count = target_.output(vectors, kVectors);
        auto put = channel_->send(vectors, count);
        if (!put.ok() && put.status().systemErrno() == EFAULT) {
            NIXL_RETURN_IF_ERROR(target_.memoryFault());
            continue;
        }
        target_.sent(put.ok() ? put.value() : 0);
        if (!put.ok()) {
            return put.status();
        }
        if (put.value() == 0) {
            return {};
        }
        budget -= std::min<uint64_t>(budget, put.value());
    }
    return {};
}

Status TargetConnection::receiveSome(uint64_t& budget, bool& dry) {
    iovec vectors[kVectors];
    while (!target_.wantsOutput() && budget > 0) {
        const size_t count = target_.inputSpace(vectors, kVectors);
        if (count == 0) {
            return {};
        }
        size_t got = 0;
        if (!early_.empty()) {  // bytes that came along with the handshake
            for (size_t i = 0; i < count && !early_.empty(); ++i) {
                const size_t n = std::min(vectors[i].iov_len, early_.size());
                std::memcpy(vectors[i].iov_base, early_.data(), n);
                early_.erase(0, n);
                got += n;
            }
        } else {
            const size_t room = totalOf(vectors, count);
            auto came = channel_->receive(vectors, count);
            if (!came.ok() && came.status().systemErrno() == EFAULT) {
                NIXL_RETURN_IF_ERROR(target_.memoryFault());
                continue;
            }
            if (!came.ok()) {
                NIXL_RETURN_IF_ERROR(target_.received(0));
                return came.status();
            }
            got = came.value();
            dry = got < room;
        }
        loop_.releaseMoved();
        NIXL_RETURN_IF_ERROR(target_.received(got));
        if (dry) {
            return {};
        }
        budget -= std::min<uint64_t>(budget, got);
    }
    return {};
}

Status TargetConnection::move(uint64_t& budget) {
    bool dry = false;
    while (budget > 0) {
        NIXL_RETURN_IF_ERROR(sendSome(budget));
        if (target_.wantsOutput()) {
            break;  // the socket is full, or the turn is over
        }
        NIXL_RETURN_IF_ERROR(target_.received(0));  // what waited for the answer
        if (target_.wantsOutput()) {
            continue;
        }
        if (dry) {
            break;  // there was nothing more before the answer went
        }
        NIXL_RETURN_IF_ERROR(receiveSome(budget, dry));
        if (!target_.wantsOutput() && budget == 0) {
            break;
        }
    }
    return {};
}

Status TargetConnection::turn(uint64_t budget, uint64_t& moved) {
    lastUsed_.store(Reactor::Clock::now(), std::memory_order_relaxed);
    uint64_t left = budget;
    Status status = move(left);
    moved = budget - left;
    moved_ += moved;
    movedInAll(moved_);
    if (status.ok()) {
        loop_.rearm(*this, target_.wantsOutput() ? EPOLLOUT : EPOLLIN,
                    target_.bytesLeft() <= kBrief);
    } else {
        ended_ = true;
    }
    return status;
}

void TargetConnection::leave(const Status& why) {
    const auto keep = std::exchange(gone_, nullptr);
    channel_->shutdown();
    loop_.remove(*this);
    keep(why);
}

uint64_t TargetConnection::serve() {
    Status status;
    uint64_t moved = 0;
    {
        const MutexLock lock(mutex_);
        if (ended_) {
            return 0;
        }
        status = turn(kTurn, moved);
    }
    if (!status.ok()) {
        leave(status);
    }
    return moved;
}

void TargetConnection::pollReady() {
    if (!mutex_.tryLock()) {
        return;
    }
    Status status;
    uint64_t moved = 0;
    const bool bulk = target_.wantsOutput() && target_.bytesLeft() > kBrief;
    if (!ended_ && !bulk) {
        status = turn(kHelpTurn, moved);
    }
    mutex_.unlock();
    if (!status.ok()) {
        leave(status);
    }
}

void TargetConnection::end(const Status& /*why*/) {
    const MutexLock lock(mutex_);
    ended_ = true;
    channel_->shutdown();
}

ClientConnection::ClientConnection(std::unique_ptr<base::Channel> channel,
                                   std::string peer_name,
                                   const base::Digest& key,
                                   DataLoop& loop,
                                   Feed feed)
    : DataConnection(std::move(channel), loop),
      client_(std::move(peer_name), key),
      feed_(std::move(feed)) {}

Status ClientConnection::sendSome(uint64_t& budget) {
    iovec vectors[kVectors];
    feed_(client_);
    while (client_.wantsOutput() && budget > 0) {
        const size_t count = client_.output(vectors, kVectors);
        const size_t wanted = totalOf(vectors, count);
        auto put = channel_->send(vectors, count);
        if (!put.ok() && put.status().systemErrno() == EFAULT) {
            NIXL_RETURN_IF_ERROR(client_.memoryFault(true));
            continue;
        }
        if (!put.ok()) {
            return put.status();
        }
        client_.sent(put.value());
        moved_ += put.value();
        budget -= std::min<uint64_t>(budget, put.value());
        feed_(client_);
        if (put.value() < wanted) {
            break;
        }
    }
    return {};
}

Status ClientConnection::receiveSome(uint64_t& budget) {
    iovec vectors[kVectors];
    while (budget > 0) {
        const size_t count = client_.inputSpace(vectors, kVectors);
        const size_t room = totalOf(vectors, count);
        auto came = channel_->receive(vectors, count);
        if (!came.ok() && came.status().systemErrno() == EFAULT) {
            NIXL_RETURN_IF_ERROR(client_.memoryFault(false));
            continue;
        }
        if (!came.ok()) {
            return came.status();
        }
        NIXL_RETURN_IF_ERROR(client_.received(came.value()));
        moved_ += came.value();
        budget -= std::min<uint64_t>(budget, came.value());
        if (came.value() < room) {
            break;
        }
    }
    return {};
}

Status ClientConnection::move(uint64_t budget) {
    NIXL_RETURN_IF_ERROR(sendSome(budget));
    NIXL_RETURN_IF_ERROR(receiveSome(budget));
    feed_(client_);
    return {};
}

void ClientConnection::arm() {
    loop_.rearm(*this, EPOLLIN | (client_.wantsOutput() ? EPOLLOUT : 0U),
                client_.outstandingBytes() <= kBrief);
}

// Without the lock, after each use of it: does for those who could not get it what they came for.
void ClientConnection::serveWakes() {
    while (woken_.load() && mutex_.tryLock()) {
        woken_.store(false);
        wakeLocked(kInlineBytes);
    }
}

// With the lock, which it gives back.
void ClientConnection::wakeLocked(uint64_t inline_bytes) {
    Report report;
    if (!ended_) {
        Status status;
        if (inline_bytes > 0 && client_.outstandingBytes() + inline_bytes <= kInlineBytes) {
            uint64_t budget = kInlineBytes;
            status = sendSome(budget);
        } else {
            feed_(client_);
        }
        report = finishTurn(std::move(status));
    }
    mutex_.unlock();
    dispatchCompletions(std::move(report));
}

// After move(): arms the connection again, or ends it.
ClientConnection::Report ClientConnection::finishTurn(Status status) {
    Report report;
    movedInAll(moved_);
    if (!ended_ && !status.ok()) {
        ended_ = true;
        report.gone = true;
        client_.fail(Status::disconnected(status.message()));
    } else if (!ended_) {
        arm();
    }
    report.status = std::move(status);
    if (client_.hasFinished()) {
        report.finished.swap(spare_);
        client_.takeFinished(report.finished);
    }
    return report;
}

// Without the lock: tells what finished, and the end of the connection.
void ClientConnection::dispatchCompletions(Report report) {
    if (report.gone) {
        channel_->shutdown();
        loop_.remove(*this);
        // Before the parts: who hears that one has failed may post again, and not to this one.
        if (gone_) {
            std::exchange(gone_, nullptr)(report.status);
        }
    }
    for (FinishedPart& part : report.finished) {
        if (part.part.owner != nullptr) {
            part.part.owner->partDone(std::move(part.status), part.failure);
        }
    }
    if (!report.finished.empty() && mutex_.tryLock()) {
        report.finished.clear();
        spare_.swap(report.finished);
        mutex_.unlock();
        serveWakes();
    }
}

uint64_t ClientConnection::serve() {
    Report report;
    uint64_t moved = 0;
    {
        const MutexLock lock(mutex_);
        if (ended_) {
            return 0;
        }
        moved = moved_;
        report = finishTurn(move(kTurn));
        moved = moved_ - moved;
    }
    dispatchCompletions(std::move(report));
    serveWakes();
    return moved;
}

void ClientConnection::end(const Status& why) {
    Report report;
    {
        const MutexLock lock(mutex_);
        report = finishTurn(why);
    }
    dispatchCompletions(std::move(report));
}

void ClientConnection::wake(uint64_t inline_bytes) {
    if (mutex_.tryLock()) {
        wakeLocked(inline_bytes);
    } else {
        // A thread moves bytes right now and may have looked for parts already: it looks again when
        // it lets go of the lock, unless it just has.
        woken_.store(true);
    }
    serveWakes();
}

void ClientConnection::pollReady() {
    if (!mutex_.tryLock()) {
        return;
    }
    Report report;
    if (!ended_) {
        uint64_t budget = kHelpTurn;
        const bool bulk = client_.wantsOutput() && client_.outstandingBytes() > kBrief;
        report = finishTurn(bulk ? receiveSome(budget) : move(budget));
    }
    mutex_.unlock();
    dispatchCompletions(std::move(report));
    serveWakes();
}

void ClientConnection::expire(Reactor::Clock::time_point now, std::chrono::milliseconds patience) {
    if (!mutex_.tryLock()) {
        return;  // something moves
    }
    Report report;
    // What the system still holds goes out by itself, and may take its time.
    const size_t unsent = ended_ ? 0 : base::unsentBytes(channel_->fd());
    if (client_.idle() || moved_ != seenMoved_ || unsent != seenUnsent_ ||
        seenAt_ == Reactor::Clock::time_point()) {
        seenMoved_ = moved_;
        seenUnsent_ = unsent;
        seenAt_ = now;
    } else if (!ended_ && now - seenAt_ >= patience) {
        report = finishTurn(Status::disconnected("nothing has moved on its data connection for " +
                                                 std::to_string(patience.count()) + " ms"));
    }
    mutex_.unlock();
    dispatchCompletions(std::move(report));
    serveWakes();
}

void ClientConnection::cancel(const PartOwner* owner) {
    Report report;
    {
        const MutexLock lock(mutex_);
        if (!ended_) {
            client_.cancel(owner);
            report = finishTurn({});
        }
    }
    dispatchCompletions(std::move(report));
    serveWakes();
}

bool ClientConnection::ended() {
    bool ended = false;
    {
        const MutexLock lock(mutex_);
        ended = ended_;
    }
    serveWakes();
    return ended;
}

}  // namespace nixl::peer
