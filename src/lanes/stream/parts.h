// How the stream lane asks for a transfer: its plan cut into requests that are small enough for
// others to get their turn between two. A prepared transfer keeps them, so that posting it again
// encodes nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nixl/backend.h"

#include "base/mutex.h"
#include "lanes/stream/wire.h"
#include "session/grants.h"

namespace nixl::peer {

// One request, ready to be sent but for its id. Immutable; shared by the posts that send it.
struct PreparedRequest {
    PreparedRequest(const Request& request,
                    const Key& grant_key,
                    std::vector<MemoryRun> this_side,
                    uint64_t plan_offset);

    OpType op;
    uint8_t flags;
    GrantId grant;
    Key key;  // proves the right to the grant's regions
    uint64_t bytes;
    uint64_t planOffset;           // of its first byte
    std::string frame;             // encoded, with the id 0
    std::vector<MemoryRun> local;  // the same bytes on this side
};

using PreparedRequestPtr = std::shared_ptr<const PreparedRequest>;

// The requests of one plan, cut when first asked for. Thread-safe.
class StreamParts {
  public:
    // The plan must outlive every call.
    StreamParts(const TransferPlan& plan, GrantsPtr grants, bool checksum);

    // Request number `index`. REQUIRES: those before it have been asked for, and more(index).
    PreparedRequestPtr at(size_t index);
    // Whether the plan has a request of that number.
    bool more(size_t index);
    // They stay, and can be used for another post.
    bool kept() const { return kept_; }
    const GrantsPtr& grants() const { return grants_; }

    static constexpr uint64_t kPartBytes = 4 << 20;
    static constexpr size_t kPartRuns = 4096;
    // Plans of more runs than that are cut anew for each post rather than kept.
    static constexpr size_t kMaxKeptRuns = 16 << 10;

  private:
    PreparedRequestPtr cut() NIXL_REQUIRES(mutex_);

    const TransferPlan& plan_;
    const GrantsPtr grants_;
    const bool checksum_;
    const bool kept_;

    Mutex mutex_;
    std::vector<PreparedRequestPtr> requests_ NIXL_GUARDED_BY(mutex_);
    size_t cut_ NIXL_GUARDED_BY(mutex_) = 0;  // how many
    // Where the next one begins.
    size_t run_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t step_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t inner_ NIXL_GUARDED_BY(mutex_) = 0;
    uint64_t offset_ NIXL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nixl::peer
