// See data_connection.h.
#include "peer/data_connection.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <sys/epoll.h>

namespace nixl::peer {

namespace {

constexpr size_t kVectors = 256;
// Bytes moved in one go before other connections get their turn.
constexpr uint64_t kTurn = 4 << 20;
// The same for callers who look how a transfer is doing: they come again.
constexpr uint64_t kHelpTurn = 512 << 10;

size_t totalOf(const iovec* vectors, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; ++i) {
        total += vectors[i].iov_len;
    }
    return total;
}

}  // namespace

TargetConnection::TargetConnection(std::unique_ptr<Channel> channel,
                                   NetworkAccess& access,
                                   const base::Digest& key,
                                   DataLoop& loop,
                                   std::string_view early_bytes,
                                   std::function<void(const Status&)> gone)
    : DataConnection(std::move(channel)),
      loop_(loop),
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
        loop_.sayMoved();
        NIXL_RETURN_IF_ERROR(target_.received(got));
        if (dry) {
            return {};
        }
        budget -= std::min<uint64_t>(budget, got);
    }
    return {};
}

Status TargetConnection::move(bool& more) {
    uint64_t budget = kTurn;
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
        NIXL_RETURN_IF_ERROR(receiveSome(budget, dry));
        if (!target_.wantsOutput() && (dry || budget == 0)) {
            break;
        }
    }
    more = budget == 0;
    return {};
}

void TargetConnection::serve(uint32_t /*events*/) {
    Status status;
    {
        const MutexLock lock(mutex_);
        if (ended_) {
            return;
        }
        lastUsed_.store(Reactor::Clock::now(), std::memory_order_relaxed);
        bool more = false;
        status = move(more);
        if (status.ok()) {
            loop_.rearm(*this, target_.wantsOutput() ? EPOLLOUT : EPOLLIN);
            return;
        }
        ended_ = true;
    }
    const auto keep = std::exchange(gone_, nullptr);
    channel_->shutdown();
    loop_.remove(*this);
    keep(status);
}

void TargetConnection::end(const Status& /*why*/) {
    const MutexLock lock(mutex_);
    ended_ = true;
    channel_->shutdown();
}

ClientConnection::ClientConnection(std::unique_ptr<Channel> channel,
                                   std::string peer_name,
                                   const base::Digest& key,
                                   DataLoop& loop,
                                   Feed feed)
    : DataConnection(std::move(channel)),
      loop_(loop),
      client_(std::move(peer_name), key),
      feed_(std::move(feed)) {}

Status ClientConnection::move(uint64_t budget) {
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
    feed_(client_);
    return {};
}

void ClientConnection::arm() {
    loop_.rearm(*this, EPOLLIN | (client_.wantsOutput() ? EPOLLOUT : 0U));
    // Whoever could not get the lock in the meantime has left word, and may have armed before.
    if (poked_.exchange(false)) {
        loop_.rearm(*this, EPOLLIN | EPOLLOUT);
    }
}

// After move(): arms the connection again, or ends it.
ClientConnection::Report ClientConnection::settle(Status status) {
    Report report;
    if (!ended_ && !status.ok()) {
        ended_ = true;
        report.gone = true;
        client_.fail(Status::disconnected(status.message()));
    } else if (!ended_) {
        arm();
    }
    report.status = std::move(status);
    report.finished = client_.takeFinished();
    return report;
}

// Without the lock: tells what finished, and the end of the connection.
void ClientConnection::tell(Report report) {
    if (report.gone) {
        channel_->shutdown();
        loop_.remove(*this);
    }
    for (FinishedPart& part : report.finished) {
        part.part->done(std::move(part.status), part.failure);
    }
    if (report.gone && gone_) {
        std::exchange(gone_, nullptr)(report.status);
    }
}

void ClientConnection::serve(uint32_t /*events*/) {
    Report report;
    {
        const MutexLock lock(mutex_);
        if (ended_) {
            return;
        }
        report = settle(move(kTurn));
    }
    tell(std::move(report));
}

void ClientConnection::end(const Status& why) {
    Report report;
    {
        const MutexLock lock(mutex_);
        report = settle(why);
    }
    tell(std::move(report));
}

void ClientConnection::poke(uint64_t inline_bytes) {
    if (!mutex_.tryLock()) {
        // Somebody moves bytes right now and may have looked for parts already.
        poked_.store(true);
        loop_.rearm(*this, EPOLLIN | EPOLLOUT);
        return;
    }
    Report report;
    if (!ended_) {
        Status status;
        if (inline_bytes > 0 && client_.idle()) {
            status = move(inline_bytes);
        } else {
            feed_(client_);
        }
        report = settle(std::move(status));
    }
    mutex_.unlock();
    tell(std::move(report));
}

void ClientConnection::help() {
    if (!mutex_.tryLock()) {
        return;
    }
    Report report;
    if (!ended_ && !client_.idle()) {
        report = settle(move(kHelpTurn));
    }
    mutex_.unlock();
    tell(std::move(report));
}

void ClientConnection::expire(Reactor::Clock::time_point now, std::chrono::milliseconds patience) {
    if (!mutex_.tryLock()) {
        return;  // something moves
    }
    Report report;
    // What the system still holds goes out by itself, and may take its time.
    const size_t unsent = ended_ ? 0 : unsentBytes(channel_->fd());
    if (client_.idle() || moved_ != seenMoved_ || unsent != seenUnsent_ ||
        seenAt_ == Reactor::Clock::time_point()) {
        seenMoved_ = moved_;
        seenUnsent_ = unsent;
        seenAt_ = now;
    } else if (!ended_ && now - seenAt_ >= patience) {
        report = settle(Status::disconnected("nothing has moved on its data connection for " +
                                             std::to_string(patience.count()) + " ms"));
    }
    mutex_.unlock();
    tell(std::move(report));
}

void ClientConnection::cancel(const void* owner) {
    Report report;
    {
        const MutexLock lock(mutex_);
        if (!ended_) {
            client_.cancel(owner);
            report = settle({});
        }
    }
    tell(std::move(report));
}

}  // namespace nixl::peer
