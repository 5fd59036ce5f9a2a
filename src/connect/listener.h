// Listening sockets, and the handshakes of those who connect to them. A handshake takes moments:
// where too many are under way, or descriptors have run out, the oldest goes, so that unknown peers
// who say nothing keep nobody out. Reactor thread only; must not outlive the reactor.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "connect/dialer.h"

namespace nixl::peer {

class HandshakeListener {
  public:
    struct Calls {
        std::function<HandshakeSelf()> self;
        // Whether whoever is at the other end may try at all; null: everybody.
        std::function<bool(const base::Fd&)> welcome;
        std::function<void(ConnectResult)> opened;
    };
    HandshakeListener(Reactor& reactor, Admission& admission, Calls calls);
    ~HandshakeListener();
    HandshakeListener(const HandshakeListener&) = delete;
    HandshakeListener& operator=(const HandshakeListener&) = delete;

    Status listen(base::Fd socket);
    bool listens() const { return !listeners_.empty(); }
    // Closes everything; nothing is called afterwards.
    void stop();
    // Connections that came to nothing. From any thread.
    uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }

    static constexpr size_t kMaxIncoming = 1024;

  private:
    struct Listener {
        base::Fd socket;
        uint64_t watch = 0;
        uint64_t pause = 0;  // timer: it is not listened to until then
    };
    void onAccept(int fd, size_t index);
    void pauseListening(size_t index, int error);
    void incomingDone(uint64_t number, Result<ConnectResult> opened);
    bool dropOldest(std::chrono::milliseconds at_least);

    Reactor& reactor_;
    Admission& admission_;
    const Calls calls_;
    std::vector<Listener> listeners_;
    std::map<uint64_t, std::shared_ptr<IncomingHandshake>> incoming_;  // oldest first
    uint64_t nextIncoming_ = 0;
    bool pauseTold_ = false;  // logged since a connection was last accepted
    std::atomic<uint64_t> refused_{0};
};

}  // namespace nixl::peer
