// The agent: a named endpoint that registers memory and moves bytes between it and its peers,
// files, block devices and objects.
//
// Threads: every call is safe from any thread at any time; posting and polling take no lock of
// the agent. Errors are thrown as nixl::Error. In a forked child every call throws NOT_ALLOWED.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/backend.h"
#include "nixl/descriptor.h"
#include "nixl/error.h"
#include "nixl/metadata_store.h"
#include "nixl/telemetry.h"
#include "nixl/transfer.h"

namespace nixl {

using BackendParams = std::map<std::string, std::string>;

struct AgentConfig {
    // Created at once, with backendParams of that name. An unknown name is one warning; none
    // created at all is an error.
    std::vector<std::string> backends;
    std::map<std::string, BackendParams> backendParams;
    bool enableProgThread = true;     // a progress thread for backends that need one
    bool enableListenThread = false;  // others fetch and send metadata at listenPort
    uint16_t listenPort = 8888;       // 0: chosen by the system, see Agent::listenPort()
    std::string listenHost;           // name or address; empty: all addresses
    bool captureTelemetry = false;    // for exporters and `nixl top`; see docs/telemetry.md
    unsigned numThreads = 0;          // passed to network backends; 0: their default
    std::optional<bool> useEtcd;      // empty: when NIXL_ETCD_ENDPOINTS is set
    std::string authKey;              // ≥ 16 bytes, shared by all agents
    std::string authKeyFile;          // mode 0600
    std::chrono::milliseconds peerTimeout{10'000};
    std::chrono::milliseconds xferTimeout{0};  // 0: none
    std::string lanes;                         // "host,stream"; empty: NIXL_LANES, else all
    unsigned busyPollMicroseconds = 0;
    std::string socketDir;
    bool dumpOnSigusr2 = false;             // or NIXL_DUMP_ON_SIGUSR2: dumpState() on the signal
    bool raiseOnError = true;               // Python: whether check_xfer_state raises
    std::string metadataStore;              // a directory, where there is no other central store
    std::shared_ptr<FrameworkStore> store;  // the framework's own, as the central store
    // endpoints, namespace, ca, cert, key, user, password, password_file, lease_time, timeout,
    // watch_timeout; what is not here is looked for in NIXL_ETCD_ENDPOINTS and so on.
    std::map<std::string, std::string> etcd;
};

struct TransferOptions {
    std::vector<std::string> backends;        // hints, in order of preference; empty: any
    std::optional<std::string> notification;  // delivered after the data
    bool skipDescMerge = false;
};

struct Notification {
    std::string from;
    std::string message;
};

struct BackendCapabilities {
    bool local = false;
    bool remote = false;
    bool notifications = false;
    std::vector<MemType> memoryTypes;
};

struct PluginParameter {
    std::string name, type, defaultValue, help;
};

// Where metadata is exchanged: the listener of another agent (host name or address), or without a
// host the central store, where parts have labels.
struct MetadataPlace {
    std::string host;
    uint16_t port = 8888;
    std::string label{};
    std::chrono::nanoseconds patience{-1};  // until it fails; negative: peerTimeout
};

class NIXL_API Agent {
  public:
    explicit Agent(std::string name, AgentConfig config = {});
    ~Agent();  // cancels what is pending; at most about 1 s
    // What the destructor does, ahead of it: waiting calls return and later ones throw
    // NOT_ALLOWED. Twice is harmless.
    void close() noexcept;
    Agent(const Agent&) = delete;
    Agent& operator=(const Agent&) = delete;

    const std::string& name() const noexcept;
    const AgentConfig& config() const noexcept;
    std::string incarnation() const;  // 32 hexadecimal digits

    // Plugins and backends.
    std::vector<std::string> availablePlugins() const;
    std::vector<MemType> pluginMemoryTypes(const std::string& plugin) const;
    std::vector<PluginParameter> pluginParameters(const std::string& plugin) const;
    std::vector<std::string> backends() const;
    std::string createBackend(const std::string& plugin, const BackendParams& params = {});
    std::map<std::string, std::string> backendParameters(const std::string& backend) const;
    BackendCapabilities backendCapabilities(const std::string& backend) const;

    // Memory. Registering again and overlapping are legal and counted. Deregistering waits for
    // posted transfers, at most peerTimeout, else throws TIMEOUT and the region stays registered.
    void registerMemory(const RegistrationList& list, const std::vector<std::string>& backends);
    void deregisterMemory(const RegistrationList& list, const std::vector<std::string>& backends);
    RegistrationHandle registerMemory(const std::vector<MemDescriptor>& descriptors,
                                      const std::string& backend = {});
    void deregisterMemory(RegistrationHandle& registration);
    using QueryResult = std::optional<std::map<std::string, std::string>>;
    std::vector<QueryResult> queryMemory(const RegistrationList& list, const std::string& backend);
    std::vector<StorageEntry> listStorage(const std::string& backend,
                                          const std::string& prefix,
                                          size_t limit = SIZE_MAX);
    void removeStorage(const std::string& backend, const std::string& name);
    // Many at a time; one Status for each name, in order.
    std::vector<Status> removeStorage(const std::string& backend,
                                      std::span<const std::string> names);

    // Prepared lists: one side, resolved once, used by index. An empty `peer` is the local side;
    // the own name is this agent as the remote side.
    PreparedList prepareList(const std::string& peer,
                             DescriptorList list,
                             const std::vector<std::string>& backends = {});
    void releaseList(PreparedList& list);
    void releaseList(HandleId id);

    // Transfers.
    TransferHandle prepareTransfer(OpType op,
                                   const DescriptorList& local,
                                   const DescriptorList& remote,
                                   const std::string& peer,
                                   const std::string& backend = {});
    TransferHandle prepareTransfer(OpType op,
                                   const DescriptorList& local,
                                   const DescriptorList& remote,
                                   const std::string& peer,
                                   const TransferOptions& options);
    // `local_indices` and `remote_indices` name descriptors of the lists pairwise; empty spans on
    // both sides mean all, in order.
    TransferHandle prepareTransfer(OpType op,
                                   HandleId local,
                                   std::span<const int64_t> local_indices,
                                   HandleId remote,
                                   std::span<const int64_t> remote_indices,
                                   const TransferOptions& options = {});
    TransferHandle prepareTransfer(OpType op,
                                   HandleId local,
                                   std::span<const int32_t> local_indices,
                                   HandleId remote,
                                   std::span<const int32_t> remote_indices,
                                   const TransferOptions& options = {});

    // Starts the transfer. A given notification replaces the prepared one. A post that fails at
    // once throws.
    XferState postTransfer(HandleId id, std::optional<std::string_view> notification = {});
    XferState postTransfer(TransferHandle& handle, std::optional<std::string_view> notif = {}) {
        return postTransfer(handle.id(), notif);
    }
    // The state of the last post; throws the transfer's error when it failed.
    XferState checkTransfer(HandleId id);
    XferState checkTransfer(TransferHandle& handle) { return checkTransfer(handle.id()); }
    // The same without throwing for a failed transfer.
    XferState transferState(HandleId id);
    // Waits until the transfer is final; throws its error, or TIMEOUT when `timeout` passes first
    // (the transfer goes on). Negative: no limit. `interrupted` is asked on every signal.
    XferState waitTransfer(HandleId id,
                           std::chrono::nanoseconds timeout = std::chrono::nanoseconds(-1),
                           bool (*interrupted)() = nullptr);
    XferState waitTransfer(TransferHandle& handle,
                           std::chrono::nanoseconds timeout = std::chrono::nanoseconds(-1)) {
        return waitTransfer(handle.id(), timeout);
    }
    // Waits until any of `ids` is final (index returned) or -1 when `timeout` passes first.
    int64_t waitAny(std::span<const HandleId> ids,
                    std::chrono::nanoseconds timeout,
                    bool (*interrupted)() = nullptr);
    void cancelTransfer(HandleId id);
    void releaseTransfer(HandleId id);
    void releaseTransfer(TransferHandle& handle);  // twice is harmless
    Status transferError(HandleId id);             // OK while none
    std::vector<DescriptorFailure> transferFailures(HandleId id);
    TransferTelemetry transferTelemetry(HandleId id);
    TransferProgress transferProgress(HandleId id);
    TransferExplanation explainTransfer(HandleId id);
    TransferCost estimateTransfer(HandleId id);
    std::string transferBackend(HandleId id);

    // Notifications: bytes, delivered in order per sender, after the data of their transfer.
    void sendNotification(const std::string& peer,
                          std::string_view message,
                          const std::string& backend = {});
    std::vector<Notification> takeNotifications();
    // Waits until some are there to take; false when `timeout` passes first. Negative: no limit.
    bool waitNotifications(std::chrono::nanoseconds timeout, bool (*interrupted)() = nullptr);
    // Readable when a transfer completed or a notification came; level-triggered, cleared by
    // takeNotifications, wait calls and drain. Owned by the agent.
    int fileno();
    void drain();

    // Metadata: what peers need to reach this agent's memory. Opaque bytes.
    std::string metadata();
    std::string partialMetadata(const DescriptorList& list,
                                bool connection_info,
                                const std::vector<std::string>& backends = {});
    std::string addPeer(std::string_view metadata);  // the peer's name; again: updates it
    void removePeer(const std::string& peer);
    bool hasPeer(const std::string& peer, const DescriptorList* list = nullptr);
    std::vector<std::string> peers() const;  // also those that a central store names
    // Waits until `count` agents are known and returns them; throws TIMEOUT. Negative: no limit.
    std::vector<std::string> waitPeers(size_t count,
                                       std::chrono::nanoseconds timeout,
                                       bool (*interrupted)() = nullptr);
    // Called when an agent becomes known or is gone, on a thread of the library that must not be
    // held up. Null: nobody.
    void onPeerChange(std::function<void(const std::string& peer, bool known)> call);
    // How often that happened, and a wait until it is more than `seen`, or `timeout` has passed.
    uint64_t peerChanges() const;
    uint64_t waitPeerChange(uint64_t seen,
                            std::chrono::nanoseconds timeout,
                            bool (*interrupted)() = nullptr);
    // The same by address or through a central store, beside the caller: the futures become ready
    // when it is done, or throw why it cannot be. What an agent registers and deregisters later is
    // told to those it was fetched by and sent to.
    uint16_t listenPort() const;  // of this agent's listener; 0: it has none
    std::future<void> fetchRemoteMetadata(const std::string& peer, const MetadataPlace& place = {});
    std::future<void> sendLocalMetadata(const MetadataPlace& place = {});
    std::future<void> sendPartialMetadata(const DescriptorList& list,
                                          bool connection_info,
                                          const MetadataPlace& place = {},
                                          const std::vector<std::string>& backends = {});
    std::future<void> invalidateLocalMetadata(const MetadataPlace& place = {});
    // As hasPeer(), but throws why the last fetch of it failed where what is asked for is not here.
    bool checkRemoteMetadata(const std::string& peer, const DescriptorList* list = nullptr);
    void connect(const std::string& peer, const std::vector<std::string>& backends = {});

    // Counters, and what is counted of transfers; docs/telemetry.md. telemetryJson() is the same as
    // one line of JSON.
    std::map<std::string, uint64_t> stats() const;
    AgentTelemetry telemetry() const;
    std::string telemetryJson() const;
    std::string dumpState() const;  // all it holds, for people; safe while transfers run

    const std::shared_ptr<detail::AgentImpl>& impl() const noexcept { return impl_; }

  private:
    std::shared_ptr<detail::AgentImpl> impl_;
};

NIXL_API const char* version() noexcept;

}  // namespace nixl
