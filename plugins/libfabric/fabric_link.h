// The way from one rail to one peer: an endpoint of its own, so that ending its connection ends
// what is under way with this peer and nothing else. Over sockets there are two, one for reads: see
// Domain::overSockets. Threads: one at a time (the rail's lock).
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nixl/backend.h"

#include "fabric_endpoint.h"

namespace nixl::fabric {

using Clock = std::chrono::steady_clock;

// A rail's share of one post. `done` is called once; what is spanned must be valid until then.
struct FabricJob {
    bool read = false;
    std::string peer;
    std::span<const PlanRun> runs;
    std::span<const RailKey> keys;       // by remote region
    std::span<void* const> descriptors;  // by local region
    Completion* completion = nullptr;    // its cancelRequested is honoured
    std::function<void(Status)> done;
    std::function<void(Status)> tellUser;  // of an end that must wait
};

// Calls to be made without the lock.
using Calls = std::vector<std::function<void()>>;

class Link final : public EndpointEvents {
  public:
    // What tells this link of the rail from others, the rail itself, and what is called before the
    // endpoint (and its descriptor) is closed.
    Link(Domain& domain, std::string name, const RailAddress& own, std::function<void()> closing);
    ~Link() override;
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    const RailAddress& peer() const { return peer_; }
    void setPeer(const RailAddress& address, Calls& calls);
    void add(FabricJob job);
    // Moves everything on; true where something changed.
    bool step(Calls& calls);
    // Ends its jobs by `why`, and forgets the connection.
    void lose(const Status& why, Calls& calls);
    // Ends everything at once; false where the peer may still touch this side's memory.
    bool close(Calls& calls);

    // There is something to move on.
    bool busy() const { return !jobs_.empty() || !fences_.empty() || unsent(); }
    // When to look again where nothing is heard.
    Clock::time_point lookAt() const;
    Endpoint* endpoint() { return endpoint_.get(); }

    // EndpointEvents
    void moved(Move& move, long error) override;
    void received(const Message& message) override;
    void sendFailed(uint64_t tag, long error) override;
    void broken(long error) override;

  private:
    struct Job;
    struct Key {
        bool asked = false;
        bool live = false;
        bool dead = false;
        size_t underWay = 0;
    };
    struct Fence {
        uint64_t number;
        std::vector<uint64_t> keys;
    };
    using JobPtr = std::unique_ptr<Job>;

    bool unsent() const { return endpoint_ != nullptr && endpoint_->unsent(); }
    // Nothing may be sent now.
    bool held() const { return domain_.overSockets() && reads_ != 0; }
    void open();
    bool cut();
    void cutForCancel();
    bool overdue(const Job& job) const;
    void watchOverConnecting();
    void closeEndpoint();
    Message introduction(MessageType type) const;
    void say(Message message);
    void reset(const Status& why, bool count);
    void askForKeys();
    bool keysReady(Job& job);
    void issue(Job& job);
    bool stepJob(Job& job, Calls& calls);
    void heedCancel(Job& job);
    void answerFences();
    bool mustHold() const;
    Status failure(const std::string& what, long error) const;
    Move& takeMove();

    static constexpr uint64_t kPiece = 2 << 20;
    static constexpr uint64_t kWindowBytes = 16 << 20;  // of one job: what a cancel waits for
    static constexpr size_t kWindow = 256;
    static constexpr size_t kReceives = 8;
    static constexpr unsigned kAttempts = 4;
    // How long a cancel waits for what libfabric has taken, before its connection is ended.
    static constexpr auto kPatience = std::chrono::milliseconds(20);
    // Of a peer whose session lives; it answers within milliseconds, or never.
    static constexpr auto kConnecting = std::chrono::seconds(15);

    Domain& domain_;
    const std::string name_;
    const RailAddress& own_;
    const std::function<void()> closing_;
    RailAddress peer_;
    std::unique_ptr<Endpoint> endpoint_;
    fi_addr_t address_ = FI_ADDR_UNSPEC;
    Id id_{};
    bool ready_ = false;
    bool blocked_ = false;  // libfabric had no room
    bool mayIssue_ = true;
    bool cut_ = false;          // by this side
    bool interrupted_ = false;  // the connection before, with something under way
    Status broken_;
    bool another_ = false;  // another agent answers there
    unsigned failures_ = 0;
    Clock::time_point openAt_;
    Clock::time_point openedAt_;
    Clock::time_point cutAt_;
    std::map<uint64_t, Key> keys_;
    std::vector<uint64_t> wanted_;
    std::list<JobPtr> jobs_;
    std::vector<Fence> fences_;
    size_t underWay_ = 0;
    size_t reads_ = 0;  // of those
    std::deque<Move> moves_;
    std::vector<Move*> free_;
};

}  // namespace nixl::fabric
