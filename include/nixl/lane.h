// One way a network backend reaches one peer. A network plugin gives its own lanes to
// PluginServices::createLaneBackend, which adds the project's (local, host, stream) and chooses
// among them per peer and memory type. Threads: as nixl/backend.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nixl/backend.h"
#include "nixl/plugin.h"

namespace nixl {

// Why a lane can carry a plan or cannot. Every lane is asked about every plan, so a literal is kept
// as it is; text that is made for it (a std::string) should be rare.
class NIXL_API LaneReason {
  public:
    LaneReason() = default;
    template <size_t N>
    LaneReason(const char (&literal)[N]) : literal_(literal) {}  // NOLINT: converts on purpose
    LaneReason(std::string text) : text_(std::move(text)) {}     // NOLINT: the same
    std::string_view text() const {
        return literal_ != nullptr ? literal_ : std::string_view(text_);
    }

  private:
    const char* literal_ = nullptr;
    std::string text_;
};

// Whether a lane can carry a plan. The usable lane with the highest score wins; the reason is
// shown by agent.explain(), also for those that lost.
struct LaneOffer {
    int score = 0;  // 0: cannot
    LaneReason reason;
};

class NIXL_API Lane {
  public:
    virtual ~Lane() = default;
    virtual const char* name() const = 0;
    virtual LaneOffer offer(const TransferPlan& plan) = 0;
    // REQUIRES: offer(plan).score > 0
    virtual Result<std::unique_ptr<BackendTransfer>> prepare(const TransferPlan& plan) = 0;
    // Called once before use. `asked`: the user named this lane, so what it needs must be there;
    // an error then fails the backend. Otherwise a lane may stay asleep until it is needed.
    virtual Status start(bool /*asked*/) { return {}; }
    // For lanes that keep remote keys of their own (libraries): what they keep of a registration,
    // null where nothing, and how peers learn of addresses and keys. See nixl/backend.h.
    virtual Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& /*region*/) {
        return std::unique_ptr<BackendMemory>();
    }
    virtual RemoteSupport* remote() { return nullptr; }
};

struct LaneBackendSpec {
    BackendInfo info;
    std::vector<std::unique_ptr<Lane>> lanes;  // the plugin's own
    std::string wantedLanes;                   // comma-separated names; empty: all
    uint64_t inlineBudgetMicroseconds = 20;    // a post may finish inline up to this cost
    bool checksum = false;                     // the lanes host and stream check what they moved
};

}  // namespace nixl
