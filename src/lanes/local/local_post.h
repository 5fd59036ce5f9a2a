// What every post of lane `local` has: the target's regions pinned while it runs, its notification
// delivered before it ends. Threads: one at a time.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/backend.h"

#include "session/target_access.h"

namespace nixl::peer {

// Kept until the end of the post.
struct LocalPost {
    CompletionPtr completion;
    std::shared_ptr<TargetAccess> target;
    std::vector<RegionPin> pins;
    std::string notification;
    bool notify = false;
    Identity from;

    // An error: the post is refused.
    Status begin(const Identity& self,
                 const TransferPlan& plan,
                 const std::weak_ptr<TargetAccess>& agent,
                 CompletionPtr ending,
                 std::string_view text,
                 bool has_text);
    // CANCELED cancels the completion. The last access to what the caller owns.
    void end(Status status, std::vector<SegmentFailure> failures = {});
};

}  // namespace nixl::peer
