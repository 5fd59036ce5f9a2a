// The endpoint at which peers reach one rail: who uses which memory, and the fences by which it is
// taken back. Threads: one at a time (the rail's lock).
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "fabric_endpoint.h"

namespace nixl::fabric {

class Inbound final : public EndpointEvents {
  public:
    // `instance`: of this rail, for who connects.
    Inbound(Domain& domain, Id instance) : domain_(domain), instance_(instance) {}
    ~Inbound() override = default;

    Status open();
    // True where something came.
    bool step();
    Endpoint& endpoint() { return *endpoint_; }
    bool works() const { return endpoint_ != nullptr; }

    // Asks everybody who uses the key to end with it; the number of the fence.
    uint64_t fence(uint64_t key);
    // Whether nobody is waited for any more.
    bool fenced(uint64_t number) const;
    // False where somebody has not answered: only ending the connections makes sure of him.
    bool endFence(uint64_t number);
    // All connections that there were have been ended.
    void connectionsEnded();
    // Closes the endpoint and listens again at the same place.
    Status reopen();
    // The rail of a peer is gone.
    void forget(const Id& instance);
    bool broken() const { return broken_; }

    // EndpointEvents
    void moved(Move& /*move*/, long /*error*/) override {}
    void received(const Message& message) override;
    void sendFailed(uint64_t tag, long error) override;
    void broken(long /*error*/) override { broken_ = true; }

  private:
    struct Peer {
        uint64_t number = 0;
        Id instance{};
        std::string name;
        fi_addr_t address = FI_ADDR_UNSPEC;
        std::set<uint64_t> keys;
        bool lost = false;  // out of reach; it may still use its keys
        bool gone = false;  // nobody listens where it was
    };
    struct Fence {
        std::set<Id> users;
        bool unsure = false;
    };
    Peer* meet(const Message& message);
    void say(const Peer& peer, const Message& message);
    void drop(const Id& link);
    void retire(const Id& link);

    static constexpr size_t kReceives = 128;

    Domain& domain_;
    const Id instance_;
    std::unique_ptr<Endpoint> endpoint_;
    std::string name_;          // of the endpoint before
    std::map<Id, Peer> peers_;  // by link
    std::map<uint64_t, Fence> fences_;
    std::vector<Id> closed_;
    std::vector<Id> retired_;
    uint64_t next_ = 1;
    bool broken_ = false;
};

}  // namespace nixl::fabric
