// Calls to etcd's v3 JSON gateway: over one endpoint until it fails, then over the next; with a
// token where there is a user. Everything is on the loop's thread.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "exchange_etcd/http_loop.h"
#include "exchange_etcd/json.h"
#include "exchange_etcd/settings.h"

namespace nixl::exchange_etcd {

// What an answer of the gateway that is an error says.
struct GatewayError {
    int code = 0;  // of gRPC; 0 where the answer is not etcd's
    std::string text;

    bool unavailable() const;    // another member, or a later try, may do it
    bool wantsNewToken() const;  // ours is unknown, too old, or was not sent
    bool refusesName() const;    // of a client's certificate; said without JSON
};

class Client {
  public:
    using Clock = HttpLoop::Clock;
    using Done = std::function<void(Result<Json>)>;

    Client(HttpLoop& loop, Settings settings) : loop_(loop), settings_(std::move(settings)) {}
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    // Tried until `timeout` has passed; 0: the setting's.
    void call(const char* path,
              const Json& body,
              Done done,
              std::chrono::milliseconds timeout = {});
    // One attempt of a call whose answer has no end. `line` gets each message; `end` is called
    // once when no more come.
    struct Stream {
        std::function<void(const Json&)> line;
        std::function<void(Status)> end;
    };
    uint64_t open(const char* path, const Json& body, Stream stream);
    void close(uint64_t stream) { loop_.cancel(stream); }

    // The endpoint in use has failed a stream or a heartbeat.
    void leaveEndpoint() { rotate(current_); }
    // Called when another endpoint is in use.
    void onMoved(std::function<void()> moved) { moved_ = std::move(moved); }
    void dropToken() { token_.clear(); }
    // Calls under way end with `why`, and so do later ones.
    void endAll(const Status& why);

    HttpLoop& loop() { return loop_; }
    const Settings& settings() const { return settings_; }
    std::string describe() const;  // "etcd at http://127.0.0.1:2379"
    Status explain(const GatewayError& error) const;

    static GatewayError errorOf(const Json& answer);

  private:
    struct Call {
        uint64_t id = 0;
        const char* path = "";
        std::string body;
        Done done;
        Clock::time_point deadline;
        unsigned tries = 0;
        unsigned tokens = 0;  // how often a new one was asked for
        Status last;          // why the last try failed
    };
    using CallPtr = std::shared_ptr<Call>;

    void attempt(const CallPtr& call);
    void answered(const CallPtr& call, size_t endpoint, const HttpReply& reply);
    void tryAgain(const CallPtr& call);
    void finish(const CallPtr& call, Result<Json> outcome);
    void authenticate(std::function<void(Status)> then);
    void rotate(size_t from);
    std::chrono::milliseconds patience(const Call& call) const;
    Status unreachable(size_t endpoint, const HttpReply& reply) const;
    Status notEtcd(size_t endpoint, const HttpReply& reply) const;

    HttpLoop& loop_;
    const Settings settings_;
    size_t current_ = 0;  // the endpoint in use
    std::string token_;
    std::vector<std::function<void(Status)>> waitForToken_;
    std::map<uint64_t, CallPtr> calls_;
    uint64_t nextCall_ = 1;
    Status ended_;
    std::function<void()> moved_;
};

}  // namespace nixl::exchange_etcd
