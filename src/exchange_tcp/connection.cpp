// See connection.h: the socket, and messages as bytes.
#include "exchange_tcp/connection.h"

#include <algorithm>
#include <utility>

#include <sys/epoll.h>

#include "base/log.h"

namespace nixl::exchange_tcp {

namespace {

constexpr std::chrono::milliseconds kRoomRetry{20};

}  // namespace

ExchangeConnection::ExchangeConnection(std::shared_ptr<Core> core,
                                       uint64_t number,
                                       peer::ConnectResult opened,
                                       bool asked)
    : core_(std::move(core)),
      speaker_{opened.result.peer, number, opened.result.proven, asked},
      channel_(std::move(opened.channel)),
      input_(std::move(opened.early)),
      lastUsed_(Reactor::Clock::now()) {
    ExchangeBudget::enter();
}

ExchangeConnection::~ExchangeConnection() {
    closeSocket();
    ExchangeBudget::leave();
}

void ExchangeConnection::start(Ended ended) {
    ended_ = std::move(ended);
    watchFor();
    if (channel_ != nullptr && !input_.empty()) {
        core_->reactor.run([weak = weak_from_this()] {
            if (const auto self = weak.lock(); self != nullptr && self->channel_ != nullptr) {
                self->onEvent(0);
            }
        });
    }
}

// What is waited for: nothing while something is on the pool and nothing waits to be sent.
void ExchangeConnection::watchFor() {
    if (channel_ == nullptr) {
        return;
    }
    const bool read = !busy_ && answers_ < kMaxAnswers && inputEnd_.ok() && !roomless_;
    const uint32_t events = (read ? EPOLLIN : 0U) | (out_.empty() ? 0U : EPOLLOUT);
    if (events == 0) {
        // Errors come unasked for as long as it is watched at all.
        if (watch_ != 0) {
            core_->reactor.unwatch(std::exchange(watch_, 0));
        }
        return;
    }
    if (watch_ != 0) {
        if (const Status status = core_->reactor.modify(watch_, events); !status.ok()) {
            end(status);
        }
        return;
    }
    auto watch =
        core_->reactor.watch(channel_->fd(), events, [weak = weak_from_this()](uint32_t seen) {
            if (const auto self = weak.lock()) {
                self->onEvent(seen);
            }
        });
    if (!watch.ok()) {
        return end(watch.status());
    }
    watch_ = watch.value();
}

void ExchangeConnection::onEvent(uint32_t events) {
    const auto keep = shared_from_this();
    if ((events & (EPOLLOUT | EPOLLERR)) != 0) {
        flush();
    }
    if (channel_ != nullptr && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && !busy_ &&
        inputEnd_.ok()) {
        inputEnd_ = receive();
    }
    while (channel_ != nullptr && takeFrame()) {
    }
    if (channel_ != nullptr && !inputEnd_.ok() && !busy_) {
        return end(inputEnd_);
    }
    watchFor();
}

// One read: others have their turn. What a message needs beyond that comes with the next ones.
Status ExchangeConnection::receive() {
    char buffer[kReadSize];  // who sends little takes little memory
    iovec vector{buffer, sizeof(buffer)};
    auto got = channel_->receive(&vector, 1);
    if (got.ok()) {
        input_.append(buffer, got.value());
        core_->bytesIn.fetch_add(got.value(), std::memory_order_relaxed);
    }
    return got.status();
}

// Handles the next message, if there is a whole one and its turn has come.
bool ExchangeConnection::takeFrame() {
    if (busy_ || answers_ >= kMaxAnswers) {
        return false;
    }
    if (input_.size() < kHeader) {
        if (!input_.empty()) {
            armPatience(kHeader);
        }
        return false;
    }
    const auto header = readHeader(input_);
    if (!header.ok()) {
        end(header.status());
        return false;
    }
    const size_t size = kHeader + header.value().length;
    if (size > ExchangeBudget::kLargeMessage && reserved_ == 0) {
        if (!core_->budget.reserve(size)) {
            awaitRoom(size);
            return false;
        }
        reserved_ = size;
        roomless_ = false;
        input_.reserve(size);
    }
    if (input_.size() < size) {
        armPatience(size);
        return false;
    }
    std::string body;
    if (input_.size() == size) {
        body = std::exchange(input_, {});
        body.erase(0, kHeader);
    } else {
        body = input_.substr(kHeader, header.value().length);
        input_.erase(0, size);
    }
    if (timer_ != 0 && out_.empty()) {
        core_->reactor.stopTimer(std::exchange(timer_, 0));
    }
    lastUsed_ = Reactor::Clock::now();
    const Status status = handle(header.value().type, std::move(body));
    if (reserved_ != 0 && !busy_) {
        core_->budget.release(std::exchange(reserved_, 0));
    }
    if (!status.ok()) {
        end(status);
        return false;
    }
    return channel_ != nullptr;
}

// A large message begins while others of that kind take all the room: looks again in a moment.
void ExchangeConnection::awaitRoom(size_t bytes) {
    armPatience(bytes);
    if (std::exchange(roomless_, true)) {
        return;
    }
    core_->reactor.startTimer(Reactor::Clock::now() + kRoomRetry, [weak = weak_from_this()] {
        if (const auto self = weak.lock(); self != nullptr && self->channel_ != nullptr) {
            self->roomless_ = false;
            self->onEvent(0);
        }
    });
}

void ExchangeConnection::answer(uint64_t request, const Status& status, Blob metadata) {
    const size_t size = metadata != nullptr ? metadata->size() : 0;
    push({Answer::encodeHead(request, status, size), std::move(metadata), true});
}

void ExchangeConnection::push(Piece piece) {
    if (channel_ == nullptr) {
        return;
    }
    lastUsed_ = Reactor::Clock::now();
    answers_ += piece.answer ? 1 : 0;
    const bool first = out_.empty();
    out_.push_back(std::move(piece));
    if (first) {
        flush();
        watchFor();
    }
}

void ExchangeConnection::flush() {
    while (channel_ != nullptr && !out_.empty()) {
        const Piece& piece = out_.front();
        iovec vectors[2];
        size_t count = 0;
        if (sent_ < piece.head.size()) {
            vectors[count++] = {const_cast<char*>(piece.head.data()) + sent_,
                                piece.head.size() - sent_};
        }
        if (piece.body != nullptr) {
            const size_t skip = sent_ > piece.head.size() ? sent_ - piece.head.size() : 0;
            vectors[count++] = {const_cast<char*>(piece.body->data()) + skip,
                                piece.body->size() - skip};
        }
        auto put = channel_->send(vectors, count);
        if (!put.ok()) {
            // What has come already still counts.
            inputEnd_ = inputEnd_.ok() ? put.status() : inputEnd_;
            out_.clear();
            answers_ = 0;
            return busy_ ? watchFor() : end(inputEnd_);
        }
        core_->bytesOut.fetch_add(put.value(), std::memory_order_relaxed);
        sent_ += put.value();
        if (sent_ < piece.size()) {
            return armPatience(piece.size());
        }
        answers_ -= piece.answer ? 1 : 0;
        out_.pop_front();
        sent_ = 0;
        if (timer_ != 0) {
            core_->reactor.stopTimer(std::exchange(timer_, 0));
        }
    }
    changed();
}

// A message that is being sent or received must be over in time.
void ExchangeConnection::armPatience(size_t bytes) {
    if (timer_ == 0) {
        const auto when =
            Reactor::Clock::now() + kPatience + std::chrono::seconds(bytes / kSlowest);
        timer_ = core_->reactor.startTimer(when, [weak = weak_from_this()] {
            if (const auto self = weak.lock()) {
                self->timer_ = 0;
                self->end(Status::timeout("agent \"" + self->peer().name +
                                          "\" took too long over a message"));
            }
        });
    }
}

bool ExchangeConnection::quiet() const {
    return !busy_ && !telling_ && out_.empty() && input_.empty() && requests_.empty();
}

void ExchangeConnection::closeSocket() {
    if (timer_ != 0) {
        core_->reactor.stopTimer(std::exchange(timer_, 0));
    }
    if (watch_ != 0) {
        core_->reactor.unwatch(std::exchange(watch_, 0));
    }
    channel_.reset();
    if (reserved_ != 0 && !busy_) {
        core_->budget.release(std::exchange(reserved_, 0));
    }
}

void ExchangeConnection::end(const Status& why) {
    const auto keep = shared_from_this();
    if (channel_ == nullptr) {
        return;
    }
    const auto call = std::exchange(ended_, nullptr);
    close(why);
    if (call) {
        call(why, parted_);
    }
}

void ExchangeConnection::close(const Status& why, bool part) {
    if (channel_ == nullptr) {
        return;
    }
    const auto keep = shared_from_this();
    ended_ = nullptr;
    if (part && out_.empty()) {
        const std::string bytes = encodePart();
        const iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
        static_cast<void>(channel_->send(&vector, 1).ok());
    }
    closeSocket();
    publishing_ = false;
    core_->owners.ended(number());
    const Status lost = why.code() == ErrorCode::REMOTE_DISCONNECT
                            ? why
                            : Status(ErrorCode::REMOTE_DISCONNECT, why.message());
    for (auto& [request, one] : std::exchange(requests_, {})) {
        if (one.done) {
            one.done(lost);
        }
    }
}

}  // namespace nixl::exchange_tcp
