// One rail: a device, the endpoint at which peers reach it, and a link to each peer. Moved on by
// the agent's reactor, which sleeps on libfabric's descriptors, and by callers who poll.
//
// Threads: any. One lock covers everything of libfabric's device. What comes into this agent's
// memory over sockets comes while somebody holds it, so that a fence is the end of it.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nixl/services.h"

#include "fabric_inbound.h"
#include "fabric_link.h"

namespace nixl::fabric {

class FabricRail final : public PolledWork, public std::enable_shared_from_this<FabricRail> {
  public:
    // `agent`: this agent's name for its peers.
    static Result<std::shared_ptr<FabricRail>> create(std::shared_ptr<const FabricLibrary> library,
                                                      const InfoPtr& info,
                                                      const std::string& agent,
                                                      PluginServices& services);
    ~FabricRail() override;
    FabricRail(const FabricRail&) = delete;
    FabricRail& operator=(const FabricRail&) = delete;

    // Ends everything that is under way and closes all connections.
    void close();

    const RailAddress& address() const { return address_; }
    std::string label() const { return domain_->label(); }
    std::string provider() const { return domain_->provider(); }

    Result<Domain::Mapped> map(const MemoryRegion& region);
    // When it returns nothing of a peer touches the memory any more, for all that libfabric tells.
    void unmap(const Domain::Mapped& mapped);

    void addPeer(const std::string& key, const RailAddress& address);
    // Ends the jobs with the peer by `why`; what is begun afterwards connects anew.
    void losePeer(const std::string& key, const Status& why, bool forget);
    void run(FabricJob job);
    // Has the rail look at its jobs' completions.
    void wake();
    // A caller polls. True where something moved.
    bool help();

    // PolledWork
    void pollReady() override { help(); }
    void resumeReads() override;

  private:
    struct Watch {
        int fd = -1;
        uint64_t id = 0;
        bool left = false;  // to callers who poll
    };
    struct Peer {
        std::string key;
        Watch watch;
        std::unique_ptr<Link> link;
        bool busy = false;
        bool forgotten = false;
    };
    using PeerPtr = std::shared_ptr<Peer>;
    enum class Who : uint8_t { REACTOR, POLLER, OTHER };

    FabricRail(std::unique_ptr<Domain> domain, std::string agent, PluginServices& services)
        : domain_(std::move(domain)), agent_(std::move(agent)), services_(services) {}
    Status start();
    bool pass(Calls& calls);
    void settle(Who who);
    void onReactor(const std::string& peer);
    void askReactor();
    void stopWatching(Watch& watch);
    void unlock(std::unique_lock<std::mutex>& lock, Calls& calls);
    void markBusy(const PeerPtr& peer);
    void follow(Peer& peer);
    void reopen();
    std::vector<std::string> linksOf(const std::string& key) const;
    void endInbound(std::unique_lock<std::mutex>& lock, Calls& calls);
    void onTimer();
    void leaveToPollers();
    void takeBack();
    bool quiet();
    void waitABit(std::unique_lock<std::mutex>& lock, Calls& calls);
    void plan();
    uint64_t watchFd(int fd, const std::string& peer);

    static constexpr int kPasses = 16;  // of the reactor, before it looks at others
    // Of providers without a descriptor.
    static constexpr auto kPollPeriod = std::chrono::microseconds(50);
    static constexpr auto kIdlePeriod = std::chrono::milliseconds(1);
    static constexpr auto kUnsentPeriod = std::chrono::milliseconds(1);
    static constexpr auto kFenceLimit = std::chrono::seconds(1);
    static constexpr auto kEndLimit = std::chrono::milliseconds(500);

    const std::unique_ptr<Domain> domain_;
    const std::string agent_;
    PluginServices& services_;
    RailAddress address_;

    std::mutex mutex_;
    std::atomic<bool> again_{false};  // somebody found the lock taken
    std::atomic<bool> resumeWanted_{false};
    std::atomic<bool> timerFired_{false};
    // Guarded by mutex_.
    std::unique_ptr<Inbound> inbound_;
    std::map<std::string, PeerPtr> peers_;
    std::vector<PeerPtr> busy_;
    std::vector<PeerPtr> stepped_;  // since it was last asked whether one may sleep
    Watch watch_;
    std::shared_ptr<Pollers> pollers_;
    uint64_t pollId_ = 0;
    bool left_ = false;
    uint64_t timer_ = 0;
    Clock::time_point timerAt_ = Clock::time_point::max();
    bool closed_ = false;
};

}  // namespace nixl::fabric
