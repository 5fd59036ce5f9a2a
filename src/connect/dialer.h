// Opening and accepting connections: connects to one of several endpoints and runs the handshake,
// or runs the handshake of a connection that came in. Reactor thread only; objects keep themselves
// alive until they have called back, and are ended early by cancel().
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nixl/services.h"

#include "base/socket.h"
#include "session/handshake.h"

namespace nixl::peer {

// A connection whose handshake is done.
struct ConnectResult {
    std::unique_ptr<base::Channel> channel;
    HandshakeResult result;
    std::string early;  // bytes that came after the handshake
    base::SocketPeer process;
    base::Target target;  // dialled only
};

// Why there is none.
struct ConnectFailure {
    Status status;
    bool refused = false;            // nobody listens at any of the endpoints
    std::optional<RejectCode> code;  // the other side said so
};

class Dialer : public std::enable_shared_from_this<Dialer> {
  public:
    using Succeeded = std::function<void(ConnectResult)>;
    using Failed = std::function<void(ConnectFailure)>;

    // `patience` is for all targets together.
    Dialer(Reactor& reactor,
           std::vector<base::Target> targets,
           Connector connector,
           std::chrono::milliseconds patience);
    ~Dialer();
    void start(Succeeded succeeded, Failed failed);
    // No callback comes any more.
    void cancel();
    // The other side has taken the connection, so the handshake is going on.
    bool connected() const { return connected_; }

    static constexpr std::chrono::milliseconds kLongestPerTarget{1500};

  private:
    void tryNext();
    bool waitForRoom();
    void onEvent(uint32_t events);
    void onConnected();
    // `sent`: how the last sending went; counts where nothing that came in says more.
    void readFrames(const Status& sent);
    void noteError(const Status& why, bool refused);
    void endTarget(const Status& why, bool refused);
    void fail(ConnectFailure why);
    void closeSocket();

    Reactor& reactor_;
    const std::vector<base::Target> targets_;
    std::chrono::milliseconds perTarget_;
    const Connector fresh_;
    Connector connector_;
    size_t next_ = 0;
    std::optional<Reactor::Clock::time_point> fullUntil_;  // the endpoint asked has no room
    bool connected_ = false;
    bool allRefused_ = true;
    Status error_;  // the first but for refusals, else the last
    std::unique_ptr<base::Channel> channel_;
    uint64_t watch_ = 0;
    uint64_t timer_ = 0;
    std::string input_;
    Succeeded succeeded_;
    Failed failed_;
};

class IncomingHandshake : public std::enable_shared_from_this<IncomingHandshake> {
  public:
    using Finished = std::function<void(Result<ConnectResult>)>;

    IncomingHandshake(Reactor& reactor,
                      base::Fd socket,
                      const HandshakeSelf& self,
                      Admission& admission);
    ~IncomingHandshake();
    void start(Finished finished);
    void cancel();
    Reactor::Clock::time_point since() const { return since_; }

    static constexpr std::chrono::milliseconds kPatience{5000};

  private:
    void onEvent();
    Status take();
    void finish(Result<ConnectResult> result);
    void closeSocket();

    Reactor& reactor_;
    const Reactor::Clock::time_point since_ = Reactor::Clock::now();
    Acceptor acceptor_;
    std::unique_ptr<base::Channel> channel_;
    uint64_t watch_ = 0;
    uint64_t timer_ = 0;
    bool magic_ = false;
    std::string input_;
    Finished finished_;
};

}  // namespace nixl::peer
