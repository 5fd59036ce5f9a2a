// Everything this agent wants of the listener at one address: connects to it, repeats what a lost
// connection leaves open, follows changes over it for as long as both sides care, and comes back
// when it is lost. Reactor thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "connect/dialer.h"
#include "exchange_tcp/connect_turns.h"
#include "exchange_tcp/connection.h"

namespace nixl::exchange_tcp {

// One thing an application asks for.
struct ExchangeRequest {
    enum class Kind : uint8_t { FETCH, PUBLISH, SEND, INVALIDATE };
    Kind kind = Kind::FETCH;
    std::string name;                            // FETCH: of the agent that must answer
    std::shared_ptr<const std::string> partial;  // SEND
    Reactor::Clock::time_point deadline;
    std::function<void(const Status&)> done;  // once
};

class ExchangeClient : public std::enable_shared_from_this<ExchangeClient> {
  public:
    struct Calls {
        std::function<peer::HandshakeSelf()> self;
        std::function<uint64_t()> number;  // for the next connection
        // A connection has begun or ended here.
        std::function<void(uint64_t, std::shared_ptr<ExchangeConnection>)> open;
        std::function<void(uint64_t)> closed;
        // Nothing is wanted here any more: this may go.
        std::function<void()> idle;
    };
    ExchangeClient(std::shared_ptr<Core> core, std::string host, uint16_t port, Calls calls);
    ~ExchangeClient();

    void add(ExchangeRequest request);
    // The application has no use for this agent any more.
    void forget(const std::string& name);
    // Nothing is wanted, waited for or followed.
    bool idle() const {
        return asked_.empty() && connection_ == nullptr && dialer_ == nullptr && !resolving_ &&
               !queued_ && pauseTimer_ == 0;
    }
    // Everything ends with `why`.
    void stop(const Status& why);

    static constexpr std::chrono::milliseconds kFirstPause{20};
    static constexpr std::chrono::seconds kLongestPause{30};
    static constexpr unsigned kMaxReturns = 30;      // in vain, before it gives a lost one up
    static constexpr std::chrono::seconds kRest{1};  // how long an idle connection stays open

  private:
    struct Asked {
        ExchangeRequest request;
        bool sent = false;
    };
    void begin();
    void resolved(Result<std::vector<base::Target>> targets);
    void dial(std::vector<base::Target> targets);
    void dialNow(std::vector<base::Target> targets, ConnectTurns::Turn turn);
    void endDial();
    void notOpened(const peer::ConnectFailure& why);
    void opened(peer::ConnectResult opened);
    void lost(const Status& why, bool parted);
    void submit();
    void send(uint64_t ticket, Asked& asked);
    void answered(uint64_t ticket, const Status& status);
    void end(uint64_t ticket, const Status& status);
    void settle();
    void leave();
    void retry(const Status& why);
    void comeBack();
    void failAll(const Status& why);
    void failLate();
    void armDeadline();
    void stopTimer(uint64_t& timer);
    Status located(const Status& why) const;
    // The call, unless this has gone or been stopped.
    template <typename Call>
    auto weakly(Call call);

    const std::shared_ptr<Core> core_;
    const std::string host_;
    const uint16_t port_;
    const Calls calls_;
    std::map<uint64_t, Asked> asked_;  // in order
    uint64_t nextTicket_ = 1;
    bool resolving_ = false;
    bool queued_ = false;  // waits for its turn to connect
    bool stopped_ = false;
    std::vector<base::Target> targets_;
    std::shared_ptr<peer::Dialer> dialer_;
    ConnectTurns::Turn turn_;  // while it connects
    std::shared_ptr<ExchangeConnection> connection_;
    std::string followed_;    // the agent whose changes come from here; empty: none
    bool published_ = false;  // the agent here is told of this one's changes
    peer::Identity publishedTo_;
    Status lastError_;
    std::chrono::milliseconds pause_{kFirstPause};
    unsigned returns_ = 0;
    uint64_t pauseTimer_ = 0;
    uint64_t deadlineTimer_ = 0;
    uint64_t restTimer_ = 0;
};

}  // namespace nixl::exchange_tcp
