// See listener.h.
#include "connect/listener.h"

#include <cerrno>
#include <utility>

#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/system_error.h"

namespace nixl::peer {

namespace {

// A handshake that takes longer makes room where descriptors have run out.
constexpr std::chrono::milliseconds kSlowHandshake{500};
constexpr int kAtOnce = 64;

}  // namespace

HandshakeListener::HandshakeListener(Reactor& reactor, Admission& admission, Calls calls)
    : reactor_(reactor), admission_(admission), calls_(std::move(calls)) {}

HandshakeListener::~HandshakeListener() {
    stop();
}

Status HandshakeListener::listen(base::Fd socket) {
    const int fd = socket.get();
    const size_t index = listeners_.size();
    auto watch = reactor_.watch(fd, EPOLLIN, [this, fd, index](uint32_t) { onAccept(fd, index); });
    if (!watch.ok()) {
        return watch.status();
    }
    listeners_.push_back({std::move(socket), watch.value()});
    return {};
}

void HandshakeListener::stop() {
    for (const Listener& listener : listeners_) {
        reactor_.unwatch(listener.watch);
        if (listener.pause != 0) {
            reactor_.stopTimer(listener.pause);
        }
    }
    listeners_.clear();
    for (const auto& [number, incoming] : std::exchange(incoming_, {})) {
        incoming->cancel();
    }
}

void HandshakeListener::onAccept(int fd, size_t index) {
    for (int round = 0; round < kAtOnce; ++round) {
        base::Fd socket(accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!socket) {
            const int error = errno;
            if (error != EMFILE && error != ENFILE && error != ENOBUFS && error != ENOMEM) {
                return;
            }
            // Who has not said who it is for so long has less of a right to a descriptor.
            if (error != EMFILE || !dropOldest(kSlowHandshake)) {
                return pauseListening(index, error);
            }
            continue;
        }
        pauseTold_ = false;
        if (calls_.welcome && !calls_.welcome(socket)) {
            refused_.fetch_add(1, std::memory_order_relaxed);
            continue;
        }
        if (incoming_.size() >= kMaxIncoming) {
            dropOldest({});
        }
        const uint64_t number = nextIncoming_++;
        auto incoming = std::make_shared<IncomingHandshake>(reactor_, std::move(socket),
                                                            calls_.self(), admission_);
        incoming_.emplace(number, incoming);
        incoming->start([this, number](Result<ConnectResult> opened) {
            incomingDone(number, std::move(opened));
        });
    }
}

// False where there is none that old.
bool HandshakeListener::dropOldest(std::chrono::milliseconds at_least) {
    if (incoming_.empty() ||
        incoming_.begin()->second->since() + at_least > Reactor::Clock::now()) {
        return false;
    }
    const auto oldest = incoming_.extract(incoming_.begin());
    oldest.mapped()->cancel();
    refused_.fetch_add(1, std::memory_order_relaxed);
    return true;
}

// Leaves who connects waiting for a moment instead of asking again at once.
void HandshakeListener::pauseListening(size_t index, int error) {
    if (!std::exchange(pauseTold_, true)) {
        base::log(LogLevel::WARN, "cannot accept a connection: " + base::errnoText(error));
    }
    Listener& listener = listeners_[index];
    static_cast<void>(reactor_.modify(listener.watch, 0).ok());
    listener.pause =
        reactor_.startTimer(Reactor::Clock::now() + std::chrono::milliseconds(100), [this, index] {
            Listener& paused = listeners_[index];
            paused.pause = 0;
            static_cast<void>(reactor_.modify(paused.watch, EPOLLIN).ok());
        });
}

void HandshakeListener::incomingDone(uint64_t number, Result<ConnectResult> opened) {
    incoming_.erase(number);
    if (!opened.ok()) {
        refused_.fetch_add(1, std::memory_order_relaxed);
        base::log(LogLevel::DEBUG, opened.status().message());
        return;
    }
    calls_.opened(std::move(opened).value());
}

}  // namespace nixl::peer
