// What this agent has of a peer's process on this host: the process itself, its pages, its memory
// that is mapped here, and what of ours it has mapped. It lives on the session of its link, which
// tells it of each control connection by number; what came over another number is of the past.
//
// Threads: any, unless said otherwise. No lock is held over Done, decided() or violated().
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "nixl/services.h"

#include "base/mutex.h"
#include "base/socket.h"
#include "lanes/host/maps.h"
#include "lanes/host/pages.h"
#include "session/handshake.h"
#include "session/network_access.h"

namespace nixl::peer {

// The session, as the attachment sees it. sendFrame() and grants() are called with the
// attachment's lock held, so whoever implements them never calls the attachment under a lock of
// its own.
class HostControl {
  public:
    virtual ~HostControl() = default;
    // Sends a frame and what goes with it over the connection of this number; false where another
    // one, or none, has taken its place.
    virtual bool sendFrame(uint64_t connection,
                           FrameType type,
                           std::string_view body,
                           std::vector<base::Fd> descriptors) = 0;
    virtual GrantsPtr grants() = 0;
    // It is known whether the process can be reached; choice() says it.
    virtual void hostDecided(uint64_t connection) = 0;
    virtual void violated(const Status& why) = 0;
    virtual void processEndedNow() = 0;  // reactor thread
};

class HostAttachment : public std::enable_shared_from_this<HostAttachment> {
  public:
    using Done = std::function<void(Status)>;
    struct Context {
        std::string peer;  // its name
        Reactor& reactor;
        WorkPool& pool;
        HostTarget& target;
        NetworkAccess& access;
        std::weak_ptr<void> owner;  // of the four above; nothing is done after its end
    };
    HostAttachment(Context context, std::weak_ptr<HostControl> control);
    ~HostAttachment();
    HostAttachment(const HostAttachment&) = delete;
    HostAttachment& operator=(const HostAttachment&) = delete;

    // A new control connection, before anything that comes over it is handled. Reactor thread.
    struct Connection {
        uint64_t number = 0;  // never 0
        bool resumed = false;
        base::Digest key{};
        base::SocketPeer process;
        base::Fd pidfd;  // invalid: the system gives none
        uint64_t cookieAt = 0;
        Key cookie{};
    };
    void connecting(Connection connection);
    // Offers our pages to a process of this host; `elsewhere`: why it is not one. Reactor thread,
    // once the connection is in use.
    void offer(const std::string& elsewhere);
    // The connection is lost; the session may go on. Reactor thread.
    void disconnected();
    // The session is lost. Returns who waited for mappings. Reactor thread.
    [[nodiscard]] std::vector<Done> sessionLost();

    // HOST_OFFER, MAP_REQUEST and MAP_REPLY; in their order.
    void onFrame(uint64_t connection,
                 FrameType type,
                 std::string_view body,
                 const std::vector<base::Fd>& descriptors);

    struct Choice {
        std::shared_ptr<HostPeer> peer;  // null where the process cannot be reached
        std::string reason;
        bool decided = false;
    };
    Choice choice();
    std::shared_ptr<HostPeer> peer();  // the choice's
    // What is, or will be, mapped of the plan's remote regions; null for those it does not touch.
    std::vector<RegionMapPtr> mapRegions(const TransferPlan& plan);
    // Calls back when the peer has answered for all regions it was asked for.
    void whenMapped(Done done);
    // Tells the peer to let go of these regions, of which it may have mapped some.
    void announceRevoked(std::span<const std::pair<uint64_t, uint32_t>> regions);

    // Reactor thread: the process is known to have ended, or only its end can have closed the
    // connection.
    bool processHasEnded() const;
    bool onlyItsEndCloses();

  private:
    void onOffer(uint64_t connection,
                 std::string_view body,
                 const std::vector<base::Fd>& descriptors);
    void decide(uint64_t connection, std::shared_ptr<HostPeer> host, std::string reason);
    void watchProcess(base::Fd pidfd);
    void forgetProcess();
    void askMaps() NIXL_REQUIRES(mutex_);
    void onMapRequest(uint64_t connection, std::string_view body);
    void answerMaps(const MapRequest& request, uint64_t connection);
    void onMapReply(uint64_t connection,
                    std::string_view body,
                    const std::vector<base::Fd>& descriptors);
    void violated(const Status& why);

    const Context context_;
    const std::weak_ptr<HostControl> control_;

    Mutex mutex_;
    uint64_t connection_ NIXL_GUARDED_BY(mutex_) = 0;  // 0: none
    base::Digest key_ NIXL_GUARDED_BY(mutex_){};
    base::SocketPeer process_ NIXL_GUARDED_BY(mutex_);
    base::Fd processFd_ NIXL_GUARDED_BY(mutex_);
    uint64_t cookieAt_ NIXL_GUARDED_BY(mutex_) = 0;
    Key cookie_ NIXL_GUARDED_BY(mutex_){};
    bool decided_ NIXL_GUARDED_BY(mutex_) = false;
    std::shared_ptr<HostPeer> host_ NIXL_GUARDED_BY(mutex_);
    std::string reason_ NIXL_GUARDED_BY(mutex_) = "no session yet";
    HostMaps maps_ NIXL_GUARDED_BY(mutex_);
    std::vector<Done> mapWaiting_ NIXL_GUARDED_BY(mutex_);
    bool answering_ NIXL_GUARDED_BY(mutex_) = false;  // a request of the peer for maps
    std::unordered_map<uint64_t, uint32_t> given_ NIXL_GUARDED_BY(mutex_);  // regions, generations

    // Reactor thread only.
    base::Fd pidfd_;
    uint64_t pidWatch_ = 0;
    std::shared_ptr<PeerMarks> marks_;
};

}  // namespace nixl::peer
