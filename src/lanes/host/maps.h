// The initiator's side of shared mappings: which of a peer's regions are mapped here, and where.
// Files are mapped whole, once for each file and peer, and let go with the last region in them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "nixl/device.h"

#include "base/mutex.h"
#include "lanes/host/map_wire.h"
#include "lanes/host/pages.h"
#include "session/grants.h"

namespace nixl::peer {

// A file of the peer, mapped here.
struct PeerFile {
    Mapping mapping;
    uint64_t size = 0;
};

// Where one region lies. Immutable; whoever copies holds it, so nothing is unmapped beneath.
struct MappedRegion {
    struct Piece {
        uint64_t begin = 0;  // in the peer's memory
        uint64_t end = 0;
        char* at = nullptr;  // of `begin`, here
    };
    std::vector<Piece> pieces;  // by address
    std::vector<std::shared_ptr<PeerFile>> files;
    // Memory of a GPU instead: where its allocation is mapped, and the peer's address of that.
    std::shared_ptr<DeviceMemory> gpu;
    uint64_t gpuBase = 0;
    bool whole = false;  // every byte of the region is in a piece

    // The place of `address` here, or null; `room`: up to where that answer holds.
    char* find(uint64_t address, uint64_t& room) const;
};

using MappedRegionPtr = std::shared_ptr<const MappedRegion>;

// One region of the peer, shared by the table and the transfers that use it. Thread-safe.
class RegionMap {
  public:
    RegionMap(uint64_t region, uint32_t its_generation, bool of_gpu)
        : id(region),
          generation(its_generation),
          gpu(of_gpu),
          reason_("the peer has not been asked yet") {}

    const uint64_t id;
    const uint32_t generation;
    const bool gpu;  // memory of a GPU, as the peer's metadata says

    MappedRegionPtr mapped() const;
    std::string reason() const;
    // Mapped from end to end.
    bool whole() const { return whole_.load(std::memory_order_acquire); }
    // The peer has been asked, or will be once there is a session.
    bool pending() const;

  private:
    friend class HostMaps;
    using Clock = std::chrono::steady_clock;
    enum class State : uint8_t { WANTED, ASKED, ANSWERED };

    void resolve(MappedRegionPtr mapped, std::string reason);

    std::atomic<bool> whole_{false};
    mutable Mutex mutex_;
    State state_ NIXL_GUARDED_BY(mutex_) = State::WANTED;
    MappedRegionPtr mapped_ NIXL_GUARDED_BY(mutex_);
    std::string reason_ NIXL_GUARDED_BY(mutex_);
    Clock::time_point answered_ NIXL_GUARDED_BY(mutex_){};
};

using RegionMapPtr = std::shared_ptr<RegionMap>;

// All of one peer. Not thread-safe: the link locks.
class HostMaps {
  public:
    static constexpr size_t kMaxFiles = 1024;        // mapped at once, of one peer
    static constexpr size_t kMaxRegions = 64 << 10;  // known at once, of one peer
    // A region that could not be mapped is asked for again after this time, when it is prepared.
    static constexpr std::chrono::seconds kAskAgain{1};

    // The entry of a region; null where the limit is reached.
    RegionMapPtr want(uint64_t id, uint32_t generation, bool gpu = false);
    // The next regions to ask the peer for, all reached by one `grant`; empty where none is wanted
    // or an answer is awaited.
    std::vector<MapRequest::Region> nextRequest(const Grants& grants, Grant& grant);
    // The answer, with the descriptors that came along. INVALID_PARAM: nobody asked.
    Status take(const MapReply& reply, const std::vector<base::Fd>& files);
    // The regions the peer no longer lets anybody reach.
    void dropRevoked(const HostPeer& host);
    // The connection is gone: what was asked will not be answered.
    void connectionLost();
    // The session is gone: nothing is mapped any more; what transfers still refer to is asked for
    // again by the next session.
    void sessionLost();

    size_t files() const;
    // An answer is awaited, or regions wait to be asked for.
    bool pending() const { return awaiting_ || !wanted_.empty(); }

  private:
    MappedRegionPtr map(const MapReply::Region& region,
                        const std::vector<base::Fd>& files,
                        std::string& reason);
    static MappedRegionPtr mapDevice(const MapReply::Region& region,
                                     const std::vector<base::Fd>& files,
                                     std::string& reason);
    Result<std::shared_ptr<PeerFile>> mapFile(const base::Fd& fd);

    std::unordered_map<uint64_t, RegionMapPtr> regions_;  // by id; of the newest generation asked
    std::vector<RegionMapPtr> wanted_;
    std::map<std::pair<uint64_t, uint64_t>, std::weak_ptr<PeerFile>> files_;
    bool awaiting_ = false;
};

}  // namespace nixl::peer
