// What others may ask of an agent as the target of their transfers. The agent implements it; it is
// shared, and goes on answering (with errors) after its agent has gone. All calls are thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "nixl/error.h"

#include "memory/region.h"
#include "session/network_access.h"

namespace nixl::peer {

using Incarnation = Key;

// A pinned region: stays registered until this is destroyed.
class RegionPin {
  public:
    RegionPin() = default;
    // Takes over a pin that has been taken.
    explicit RegionPin(memory::RegionPtr pinned) : region_(std::move(pinned)) {}
    RegionPin(RegionPin&& other) noexcept : region_(std::exchange(other.region_, {})) {}
    RegionPin& operator=(RegionPin&& other) noexcept {
        std::swap(region_, other.region_);
        return *this;
    }
    RegionPin(const RegionPin&) = delete;
    RegionPin& operator=(const RegionPin&) = delete;
    ~RegionPin() {
        if (region_) {
            region_->unpin();
        }
    }
    const memory::Region& region() const { return *region_; }

  private:
    memory::RegionPtr region_;
};

class TargetAccess {
  public:
    virtual ~TargetAccess() = default;
    virtual const std::string& agentName() const = 0;
    // NOT_FOUND where the region has been deregistered since (another generation or none);
    // REMOTE_DISCONNECT after the agent's end.
    virtual Result<RegionPin> pin(uint64_t region_id, uint32_t generation) = 0;
    // Queues a notification; REMOTE_DISCONNECT after the agent's end.
    virtual Status deliverLocal(const Identity& from, std::string message) = 0;
};

// The agents of this process, by incarnation; those of a process that forked it are others. The
// registry never keeps one alive.
void enterLocalAgent(const Incarnation& who, std::weak_ptr<TargetAccess> access);
void leaveLocalAgent(const Incarnation& who);
std::shared_ptr<TargetAccess> findLocalAgent(const Incarnation& who);

}  // namespace nixl::peer
