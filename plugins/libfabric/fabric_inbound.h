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
    Inbound(Domain& domain, Id instance) : domain_(domain), instance_(instance) {}
    ~Inbound() override = default;

    Status open();
    // True where something came.
    bool step();
    Endpoint& endpoint() { return *endpoint_; }
    bool works() const { return endpoint_ != nullptr; }

    // Asks everybody who uses the key to end with it; 0: nobody does.
    uint64_t fence(uint64_t key);
    bool fenced(uint64_t number) const { return !fences_.contains(number); }
    // Closes every connection, so that nothing comes into memory any more, and listens again at
    // the same place: peers connect anew and begin again.
    Status reopen();
    // The agent is gone: all links whose name begins so.
    void forget(const std::string& agent);
    bool broken() const { return broken_; }
    // Bells to be rung for what has been sent since this was asked last.
    std::set<std::string> takeRings() { return std::exchange(rings_, {}); }

    // EndpointEvents
    void moved(Move& /*move*/, long /*error*/) override {}
    void received(const Message& message) override;
    void sendFailed(uint64_t tag, long error) override;
    void broken(long /*error*/) override { broken_ = true; }

  private:
    struct Peer {
        uint64_t number = 0;
        std::string agent;
        std::string bell;
        fi_addr_t address = FI_ADDR_UNSPEC;
        std::set<uint64_t> keys;
    };
    void greet(const Message& message);
    void say(const Peer& peer, const Message& message);
    void drop(const Id& link);
    void dropAll();

    static constexpr size_t kReceives = 128;

    Domain& domain_;
    const Id instance_;
    std::unique_ptr<Endpoint> endpoint_;
    std::string name_;          // of the endpoint before
    std::map<Id, Peer> peers_;  // by link
    std::map<uint64_t, std::set<Id>> fences_;
    std::vector<Id> gone_;
    std::set<std::string> rings_;
    uint64_t next_ = 1;
    bool broken_ = false;
};

}  // namespace nixl::fabric
