// One exchange connection after its handshake, at either end: what each side asks and answers, and
// the changes told to who follows. Reactor thread only; what may take long (making and taking
// metadata) it leaves to the work pool, one thing at a time.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "connect/dialer.h"
#include "exchange_tcp/core.h"
#include "exchange_tcp/messages.h"

namespace nixl::exchange_tcp {

class ExchangeConnection : public std::enable_shared_from_this<ExchangeConnection> {
  public:
    using Done = std::function<void(const Status&)>;
    // `parted`: the other side has closed it for lack of room.
    using Ended = std::function<void(const Status& why, bool parted)>;

    // `asked`: this side has called, so what comes is wanted.
    ExchangeConnection(std::shared_ptr<Core> core,
                       uint64_t number,
                       peer::ConnectResult opened,
                       bool asked);
    ~ExchangeConnection();
    void start(Ended ended);

    const peer::Identity& peer() const { return speaker_.who; }
    uint64_t number() const { return speaker_.connection; }

    // Asks for the other's metadata, or for what is new in it. `done` comes once, when it has been
    // taken or cannot be, also where the connection ends before (then with REMOTE_DISCONNECT).
    void fetch(bool follow, Done done);
    // Hands over this agent's metadata: all of it, and from here on what changes.
    void publish(Done done);
    // The same for a part, which does not change.
    void send(std::shared_ptr<const std::string> partial, Done done);
    void invalidate(Done done);

    // The agent's metadata has changed: tells who follows.
    void changed();
    // Whether it is told of changes over this connection.
    bool publishes() const { return publishing_; }
    // Nothing is asked or answered.
    bool quiet() const;
    Reactor::Clock::time_point lastUsed() const { return lastUsed_; }

    // Closes it; `ended` is not called. With `part` the other side is told that there is no room.
    void close(const Status& why, bool part = false);

    static constexpr std::chrono::seconds kPatience{30};  // for each message, and its size
    static constexpr size_t kSlowest = 100 << 10;         // bytes a second

  private:
    using Blob = std::shared_ptr<const std::string>;
    struct Piece {
        std::string head;
        Blob body;  // may be null
        bool answer = false;
        size_t size() const { return head.size() + (body != nullptr ? body->size() : 0); }
    };
    struct Request {
        bool fetch = false;
        bool whole = false;  // a fetch that names nothing as known
        Done done;
    };

    void onEvent(uint32_t events);
    Status receive();
    bool takeFrame();
    Status handle(MessageType type, std::string body);
    Status onFetch(std::string_view body);
    Status onLoad(std::string body);
    Status onInvalidate(std::string_view body);
    Status onAnswer(std::string body);
    void ask(std::optional<exchange::Known> known, bool follow, Done done);
    void finish(uint64_t request, const Status& status);
    void answer(uint64_t request, const Status& status, Blob metadata = nullptr);
    void push(Piece piece);
    void flush();
    void watchFor();
    void armPatience(size_t bytes);
    void awaitRoom(size_t bytes);
    void end(const Status& why);
    void closeSocket();
    // Runs `work` on the pool and then `next` here, unless the connection has ended.
    template <typename Work, typename Next>
    void elsewhere(Work work, Next next);
    void tellChanges(uint64_t request, Done done);

    const std::shared_ptr<Core> core_;
    Speaker speaker_;
    std::unique_ptr<base::Channel> channel_;
    Ended ended_;
    uint64_t watch_ = 0;
    uint64_t timer_ = 0;
    bool busy_ = false;  // something of it is on the pool: nothing else is read meanwhile
    bool parted_ = false;
    std::string input_;
    size_t reserved_ = 0;
    bool roomless_ = false;  // a large message waits for room
    Status inputEnd_;        // how the input ended, handled when all before it is
    std::deque<Piece> out_;
    size_t sent_ = 0;  // of the first piece
    size_t answers_ = 0;
    uint64_t nextRequest_ = 1;
    std::map<uint64_t, Request> requests_;
    bool publishing_ = false;
    bool telling_ = false;      // a difference is being made or waits to be sent
    uint64_t toldVersion_ = 0;  // of this agent, at the other side
    Reactor::Clock::time_point lastUsed_;

    static constexpr size_t kMaxAnswers = 4;  // that wait to be read
    static constexpr size_t kReadSize = 64 << 10;
};

}  // namespace nixl::exchange_tcp
