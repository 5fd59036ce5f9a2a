// Metadata exchanged with agents by address: this agent's listener, and its calls to the listeners
// of others. Runs on the agent's reactor; no thread of its own. Owned by the agent, must be
// destroyed before the reactor and the work pool. All calls are thread-safe and return at once, but
// for stop().
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "nixl/services.h"

#include "exchange/local_agent.h"

namespace nixl::exchange_tcp {

class TcpExchangeImpl;

class TcpExchange {
  public:
    using Done = std::function<void(const Status&)>;  // once, from any thread, no lock held
    using Deadline = std::chrono::steady_clock::time_point;

    TcpExchange(std::string auth_key,
                Reactor& reactor,
                WorkPool& pool,
                std::shared_ptr<exchange::LocalAgent> agent);
    ~TcpExchange();  // as stop()
    TcpExchange(const TcpExchange&) = delete;
    TcpExchange& operator=(const TcpExchange&) = delete;

    // Opens the listener, and tells its port.
    Result<uint16_t> listen(const std::string& host, uint16_t port);
    // Closes everything; what is under way ends CANCELED. Idempotent.
    void stop(const Status& why);

    // Asks the agent `name` at an address for its metadata, and follows its changes.
    void fetch(const std::string& name,
               const std::string& host,
               uint16_t port,
               Deadline deadline,
               Done done);
    // Hands this agent's metadata to whoever listens there, and tells it of changes.
    void publish(const std::string& host, uint16_t port, Deadline deadline, Done done);
    // The same of a part, which does not change.
    void send(
        std::string partial, const std::string& host, uint16_t port, Deadline deadline, Done done);
    // Asks whoever listens there to forget this agent.
    void invalidate(const std::string& host, uint16_t port, Deadline deadline, Done done);

    // This agent's metadata has changed.
    void changed();
    // The application has added or removed this agent.
    void added(const std::string& name);
    void removed(const std::string& name);
    // What is known of the agent does not suffice: asks for what is new, where it is followed.
    void refresh(const std::string& name);

    std::map<std::string, uint64_t> stats() const;

  private:
    std::shared_ptr<TcpExchangeImpl> impl_;
};

}  // namespace nixl::exchange_tcp
