// The inside of the engine, for the files of this folder: what its links share.
// Thread-safe; links are entered and left under the lock, listeners live on the reactor thread.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/poll_set.h"
#include "base/threads.h"
#include "connect/dialer.h"
#include "connect/endpoints.h"
#include "connect/listener.h"
#include "lanes/host/pages.h"
#include "lanes/stream/loop.h"
#include "peer/engine.h"
#include "peer/link.h"

namespace nixl::peer {

class EngineImpl final : public Admission, public std::enable_shared_from_this<EngineImpl> {
  public:
    EngineImpl(const EngineConfig& config, Reactor& reactor, WorkPool& pool, NetworkAccess& access);
    ~EngineImpl() override;

    Status start();
    void stop();

    std::string connectionInfo();
    std::shared_ptr<Link> find(std::string_view name, const Key& incarnation);
    std::shared_ptr<Link> find(const Identity& peer) { return find(peer.name, peer.incarnation); }
    std::shared_ptr<Link> findOrMake(const Identity& peer);
    void forget(const std::shared_ptr<Link>& link);
    // The same where the agent has not been told of the peer: each of them is another one.
    void forgetUnknown(const std::shared_ptr<Link>& link);
    Status setMetadata(const Identity& peer, std::optional<Endpoints> endpoints, GrantsPtr grants);
    std::vector<std::shared_ptr<Link>> links();

    // Admission (reactor thread).
    std::optional<Key> grantKey(GrantId grant) override;
    std::optional<base::Digest> sessionKey(const Identity& peer) override;
    std::optional<Reject> checkIncoming(const Identity& peer) override;
    std::optional<Earlier> earlier(const Identity& peer) override;
    std::optional<Reject> admit(const HandshakeResult& result) override;

    // As Engine's.
    void revoke(uint64_t region_id, uint32_t generation);
    void restore(uint64_t region_id, uint32_t generation);
    Status awaitQuiet(base::Deadline deadline);

    HandshakeSelf handshakeSelf() const;
    const HandshakeListener& listener() const { return listener_; }
    // Runs `task` on the reactor thread and waits; at once where it is that thread.
    void onReactor(const std::function<void()>& task);

    const EngineConfig config;
    Reactor& reactor;
    WorkPool& pool;
    NetworkAccess& access;
    const Key bootId;
    const base::ProcessMark process;
    HostTarget hostTarget;
    base::PollSet pollSet;
    DataLoop dataLoop;
    std::atomic<uint64_t> bytesIn{0};
    std::atomic<uint64_t> bytesOut{0};
    std::atomic<uint64_t> sessions{0};

    static constexpr size_t kMaxLinks = 16 << 10;

  private:
    using LinkKey = std::pair<std::string, Key>;
    struct LinkOrder {
        // Looked up without a copy of the name.
        using is_transparent = void;  // NOLINT(readability-identifier-naming): the standard's
        template <typename A, typename B>
        bool operator()(const A& a, const B& b) const {
            const int names = std::string_view(a.first).compare(b.first);
            return names != 0 ? names < 0 : a.second < b.second;
        }
    };
    std::optional<Reject> ownConnectionStands(const Link* link, const Identity& peer) const;
    bool welcome(const base::Fd& socket) const;
    void opened(ConnectResult connection);

    const Key cookie_;
    Endpoints endpoints_;
    Mutex mutex_;
    std::map<LinkKey, std::shared_ptr<Link>, LinkOrder> links_ NIXL_GUARDED_BY(mutex_);
    bool stopped_ NIXL_GUARDED_BY(mutex_) = false;
    // Being deregistered: their peers have not been told yet.
    std::vector<std::pair<uint64_t, uint32_t>> revoked_ NIXL_GUARDED_BY(mutex_);
    HandshakeListener listener_;  // reactor thread only (start and stop run alone)
};

}  // namespace nixl::peer
