// The agent behind nixl::Agent: owns reactor, copy pool, backends, peers, prepared lists and
// transfers, and the policy between them. Errors are Statuses here; agent.cpp throws them.
//
// Threads: every call is safe from any thread. Posting and polling take no lock of the agent.
// Members are destroyed in an order that shutDown() prepares.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nixl/agent.h"
#include "nixl/lane.h"

#include "agent/call_gate.h"
#include "agent/loaded_backend.h"
#include "agent/peer.h"
#include "agent/progress.h"
#include "agent/shared.h"
#include "agent/transfer.h"
#include "base/reactor.h"
#include "base/slot_table.h"
#include "base/work_pool.h"
#include "exchange/central.h"
#include "exchange/fetches.h"
#include "exchange/local_agent.h"
#include "exchange_tcp/tcp_exchange.h"
#include "peer/engine.h"
#include "telemetry/publisher.h"

namespace nixl::agent {

// One side as the user prepared it, resolved for one or more backends.
struct PreparedSide {
    // What the last transfer with this list as its local side was made of: the next one with the
    // same remote list needs no choice again.
    struct Pairing {
        HandleId remote = 0;
        std::shared_ptr<LoadedBackend> loaded;
        std::shared_ptr<const SideResolution> near;
        std::weak_ptr<const SideResolution> far;  // the remote list's own
    };

    // The last one, if it was with this list.
    Pairing pairedWith(HandleId remote_list) {
        MutexLock lock(mutex);
        return last.remote == remote_list ? last : Pairing();
    }

    std::string peerName;  // empty: the local side
    std::shared_ptr<Peer> peer;
    DescriptorList list;
    std::vector<std::string> backends;  // hints
    Mutex mutex;
    std::map<unsigned, std::shared_ptr<const SideResolution>> resolved NIXL_GUARDED_BY(mutex);
    Pairing last NIXL_GUARDED_BY(mutex);
};

}  // namespace nixl::agent

namespace nixl::detail {

class AgentImpl : public std::enable_shared_from_this<AgentImpl> {
  public:
    using Loaded = std::shared_ptr<agent::LoadedBackend>;
    using LoadedList = std::vector<Loaded>;
    using Names = std::vector<std::string>;

    static Result<std::shared_ptr<AgentImpl>> create(std::string name, AgentConfig config);
    ~AgentImpl();
    AgentImpl(const AgentImpl&) = delete;
    AgentImpl& operator=(const AgentImpl&) = delete;

    // NOT_ALLOWED in a forked child and after shutDown().
    Status usable() const;
    bool forked() const noexcept;
    // Cancels and ends everything; at most about a second. Idempotent.
    void shutDown();

    // Every call from outside is inside this gate while it uses the agent.
    agent::CallGate& gate() noexcept { return gate_; }

    const peer::Identity& self() const noexcept { return shared_->self(); }
    const AgentConfig& config() const noexcept { return config_; }
    const std::shared_ptr<agent::AgentShared>& shared() const noexcept { return shared_; }

    // Backends (backends.cpp).
    Result<std::string> createBackend(const std::string& plugin, const BackendParams& params);
    LoadedList loadedBackends() const;
    Result<Loaded> loaded(const std::string& name) const;
    // The backends of these names, or all.
    Result<LoadedList> choose(const Names& names) const;

    // Memory (registration.cpp).
    Status registerMemory(const RegistrationList& list, const Names& backends);
    Status deregisterMemory(const RegistrationList& list, const Names& backends);
    Result<std::vector<Agent::QueryResult>> query(const RegistrationList& list,
                                                  const std::string& backend);

    // Transfers (prepare.cpp).
    Result<HandleId> prepareList(const std::string& peer,
                                 DescriptorList list,
                                 const Names& backends);
    Result<HandleId> prepareTransfer(OpType op,
                                     const DescriptorList& local,
                                     const DescriptorList& remote,
                                     const std::string& peer,
                                     const TransferOptions& options);
    template <typename Index>
    Result<HandleId> prepareTransfer(OpType op,
                                     HandleId local,
                                     std::span<const Index> local_indices,
                                     HandleId remote,
                                     std::span<const Index> remote_indices,
                                     const TransferOptions& options);
    using TransferRef = base::SlotTable<agent::Transfer>::Ref;
    Result<TransferRef> transfer(HandleId id);
    Result<TransferTelemetry> telemetry(HandleId id);
    Status post(HandleId id, std::optional<std::string_view> notification);
    Status releaseTransfer(HandleId id);
    Status releaseList(HandleId id);
    std::vector<HandleId> transfers() { return transfers_.ids(); }

    // Peers and metadata (peers.cpp, metadata.cpp).
    Result<std::string> metadata();
    Result<std::string> partialMetadata(const DescriptorList& list,
                                        bool connection_info,
                                        const Names& backends);
    Result<std::string> addPeer(std::string_view blob);
    Status removePeer(const std::string& name);
    std::shared_ptr<agent::Peer> peer(const std::string& name) const;
    Result<bool> hasPeer(const std::string& name, const DescriptorList* list);
    std::vector<std::string> peerNames() const;
    Status connect(const std::string& name, const Names& backends);

    // Metadata by address or through a central store (exchange.cpp). `done` comes once, from any
    // thread; a status that is not OK is what is known at once, and then it does not come.
    using Done = std::function<void(const Status&)>;
    Status fetchMetadata(const std::string& name, const MetadataPlace& place, Done done);
    Status publishMetadata(const MetadataPlace& place, Done done);
    Status sendPartialMetadata(const DescriptorList& list,
                               bool connection_info,
                               const Names& backends,
                               const MetadataPlace& place,
                               Done done);
    Status invalidateMetadata(const MetadataPlace& place, Done done);
    // As hasPeer(); why the last fetch failed where it does not know better.
    Result<bool> checkMetadata(const std::string& name, const DescriptorList* list);
    // Through the central store (central.cpp).
    // Calls back when the metadata of an agent becomes known (true) or is gone (false).
    void onPeerChange(std::function<void(const std::string&, bool)> call);
    uint64_t peerChanges() const noexcept { return peerChanges_.load(); }
    std::string storeText() const;  // where the central store is and how it goes; empty: none
    uint16_t listenPort() const noexcept { return listenPort_; }
    const exchange::Fetches& fetches() const noexcept { return fetches_; }
    // What exchange::LocalAgent says.
    using Taken = exchange::LocalAgent::Taken;
    uint64_t metadataVersion() const { return shared_->regions().version(); }
    Result<exchange::Snapshot> metadataSince(uint64_t since);
    std::optional<exchange::Known> knownPeer(const std::string& name) const;
    Result<Taken> takeBlob(metadata::Blob blob, bool needs_grant);
    void dropPeer(const peer::Identity& who);

    // Reads the sessions, for callers who poll (network.cpp).
    void helpSessions();
    // A caller stops polling, or will sleep on the agent's descriptor.
    void aboutToSleep();
    void sleepOnEvents();
    Status sendNotification(const std::string& name, std::string_view message);
    std::vector<Notification> takeNotifications();

    // What it counts and holds (watching.cpp).
    std::map<std::string, uint64_t> stats() const;
    AgentTelemetry telemetry();
    std::string dumpState();

  private:
    AgentImpl(AgentConfig config, std::shared_ptr<agent::AgentShared> shared);
    Status start();
    Status createConfigured();
    Status readTelemetrySettings();
    void startTelemetry();
    std::vector<PendingTransfer> pendingTransfers(size_t most);
    void dropParts() NIXL_REQUIRES(backendsMutex_);
    void warnOfUnknownParams() const;
    Result<std::vector<std::unique_ptr<Lane>>> projectLanes(PluginServices& services,
                                                            const LaneBackendSpec& spec);
    // The session engine (network.cpp); null while no backend uses lanes.
    peer::Engine* engine() const;
    // Sends to whoever it is, itself included; `done` is called once.
    void notify(const peer::Identity& who, std::string message, std::function<void(Status)> done);
    Status ensureEngine();
    // Exchange of metadata (exchange.cpp).
    Status startExchange();
    Status ensureExchange();
    exchange_tcp::TcpExchange* exchange() const {
        return exchangeReady_.load(std::memory_order_acquire);
    }
    void endExchange();
    std::shared_ptr<exchange::LocalAgent> localAgent();
    Status startCentral();
    Result<std::shared_ptr<exchange::MetadataStore>> openStore(std::string& space);
    Status fetchCentral(const std::string& name, const MetadataPlace& place, Done done);
    Status publishCentral(const MetadataPlace& place, Done done);
    Status partCentral(const DescriptorList& list,
                       bool connection_info,
                       const Names& backends,
                       const MetadataPlace& place,
                       Done done);
    Status invalidateCentral(const MetadataPlace& place, const Done& done);
    // Takes in what the central store knows of this agent.
    void learnPeer(const std::string& name) const {
        if (central_ != nullptr && name != self().name) {
            central_->learn(name);
        }
    }
    bool isAlive(const peer::Identity& who) const;
    void peerChanged(const std::string& name, bool there);
    Status checkPlace(const MetadataPlace& place) const;
    base::Deadline deadlineOf(const MetadataPlace& place) const;
    Done warnOfFailure(const char* what, const MetadataPlace& place, Done done) const;
    void metadataChanged();
    void addedByHand(const std::string& name);
    void removedByHand(const std::string& name);
    void refreshPeer(const std::string& name);
    Status connectSession(const peer::Identity& who);
    // The same without waiting.
    void openSession(const peer::Identity& who, std::function<void(Status)> done);
    // Null before the first session.
    std::shared_ptr<Pollers> pollers() const;
    // Tells the backends that keep connections of their own.
    void sessionLost(const peer::Identity& who, const Status& why);
    void endBackendConnections();
    void endTransfers(base::Deadline limit);
    void endSessions();
    void dropConnections(const peer::Identity& who);
    Status notifySession(const peer::Identity& who, std::string_view message);
    Status deregisterFenced(const RegistrationList& list,
                            const std::vector<unsigned>& backends,
                            base::Deadline deadline);
    // INVALID_PARAM for an unknown peer, null for the agent itself.
    Result<std::shared_ptr<agent::Peer>> findPeer(const std::string& name) const;

    using Side = std::shared_ptr<const agent::SideResolution>;
    Result<Side> resolveOwn(const DescriptorList& list, const agent::LoadedBackend& loaded) const;
    Result<Side> resolvePeer(const DescriptorList& list,
                             const agent::LoadedBackend& loaded,
                             const std::shared_ptr<agent::Peer>& peer) const;
    Status importKeys(agent::SideResolution& side,
                      const agent::LoadedBackend& loaded,
                      const std::vector<const memory::RemoteRegion*>& used) const;
    Result<Side> resolveSide(agent::PreparedSide& side, const agent::LoadedBackend& loaded) const;
    Result<HandleId> enter(Result<std::unique_ptr<agent::Transfer>> made);
    template <typename Attempt>
    Result<HandleId> tryBackends(const TransferOptions& options,
                                 MemType local,
                                 MemType remote,
                                 bool self,
                                 const Attempt& attempt);

    Status registerAt(const RegistrationList& list,
                      const agent::LoadedBackend& loaded,
                      std::vector<memory::RegionTable::Addition>& additions) const;
    // The identity and everything of the chosen backends; `only` (sorted region ids) limits it.
    Status fillBlob(metadata::Blob& blob,
                    const LoadedList& loaded_list,
                    const std::vector<uint64_t>* only) const;
    Status addToBackends(const agent::Peer& peer) const;

    void watchDeadline(HandleId id, const std::shared_ptr<agent::TransferState>& state);
    void armDeadline() NIXL_REQUIRES(deadlineMutex_);
    std::function<void()> asCall(std::function<void(AgentImpl&)> what);
    void onDeadline();
    void endLate(const std::vector<HandleId>& ids,
                 base::Deadline started,
                 const std::function<void(agent::Transfer&, uint64_t post, Status)>& end);
    static void disposeTransfer(void* self, std::unique_ptr<agent::Transfer> transfer);
    void sweepParked();

    const AgentConfig config_;
    const std::shared_ptr<agent::AgentShared> shared_;
    const uint64_t forkEpoch_;
    bool figures_ = true;     // whether transfers tell theirs; set at the start
    bool publishes_ = false;  // whether exporters and `nixl top` are told; set at the start
    std::chrono::milliseconds telemetryInterval_{0};
    std::atomic<bool> telemetryOver_{false};
    const std::chrono::steady_clock::time_point created_ = std::chrono::steady_clock::now();
    std::atomic<bool> ended_{false};
    agent::CallGate gate_;

    std::unique_ptr<telemetry::Publisher> publisher_;  // set at the start; null: none
    std::unique_ptr<base::EpollReactor> reactor_;
    std::unique_ptr<base::ThreadPool> pool_;
    std::unique_ptr<agent::ProgressThread> progress_;
    Mutex engineMutex_;
    std::unique_ptr<peer::Engine> engine_ NIXL_GUARDED_BY(engineMutex_);
    std::atomic<peer::Engine*> engineReady_{nullptr};
    std::unique_ptr<exchange_tcp::TcpExchange> exchange_ NIXL_GUARDED_BY(engineMutex_);
    std::atomic<exchange_tcp::TcpExchange*> exchangeReady_{nullptr};
    std::shared_ptr<exchange::Central> central_;  // set at the start; null: no store
    std::chrono::nanoseconds centralPatience_{0};
    std::atomic<uint64_t> peerChanges_{0};
    Mutex changeMutex_;
    std::function<void(const std::string&, bool)> onPeerChange_ NIXL_GUARDED_BY(changeMutex_);
    exchange::Fetches fetches_;
    uint16_t listenPort_ = 0;            // set at the start
    std::atomic<int64_t> refreshed_{0};  // when somebody was last asked again, in ns
    Mutex snapshotMutex_;
    exchange::Snapshot snapshot_ NIXL_GUARDED_BY(snapshotMutex_);  // the last whole one

    mutable SharedMutex backendsMutex_;
    LoadedList backends_ NIXL_GUARDED_BY(backendsMutex_);

    Mutex addPeerMutex_;  // one blob at a time, so that none is lost in a merge
    mutable SharedMutex peersMutex_;
    std::map<std::string, std::shared_ptr<agent::Peer>> peers_ NIXL_GUARDED_BY(peersMutex_);

    base::SlotTable<agent::Transfer> transfers_;
    base::SlotTable<agent::PreparedSide> lists_;
    Mutex parkedMutex_;
    std::atomic<bool> anyParked_{false};  // written with the mutex held
    std::vector<std::unique_ptr<agent::Transfer>> parked_ NIXL_GUARDED_BY(parkedMutex_);

    struct Deadline {
        base::Deadline when;
        HandleId id = 0;
        std::weak_ptr<agent::TransferState> state;
    };
    Mutex deadlineMutex_;
    std::deque<Deadline> deadlines_ NIXL_GUARDED_BY(deadlineMutex_);
    uint64_t deadlineTimer_ NIXL_GUARDED_BY(deadlineMutex_) = 0;
};

}  // namespace nixl::detail
