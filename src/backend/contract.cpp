// What of nixl/backend.h is not inline: the one end of a completion, and what a backend answers
// that leaves an optional call out.
#include <string>
#include <utility>
#include <vector>

#include "nixl/backend.h"

namespace nixl {

Completion::~Completion() = default;

bool Completion::finish(XferState state, Status&& status, std::vector<SegmentFailure>&& failures) {
    if (ended_.exchange(true, std::memory_order_acq_rel)) {
        return false;
    }
    onFinal(state, std::move(status), std::move(failures));
    state_.store(state, std::memory_order_release);
    afterFinal();
    return true;
}

bool Completion::succeed() {
    return finish(XferState::DONE, {}, {});
}

bool Completion::fail(Status status, std::vector<SegmentFailure> failures) {
    const bool canceled = status.code() == ErrorCode::CANCELED;
    return finish(canceled ? XferState::CANCELED : XferState::FAILED, std::move(status),
                  std::move(failures));
}

bool Completion::cancel(std::string why) {
    return finish(XferState::CANCELED, Status::canceled(std::move(why)), {});
}

Result<std::vector<StorageEntry>> QuerySupport::list(std::string_view /*prefix*/,
                                                     size_t /*limit*/) {
    return Status::notSupported("this backend cannot list its storage");
}

Status QuerySupport::remove(std::string_view name) {
    return Status::notSupported("this backend cannot remove \"" + std::string(name) + "\"");
}

std::vector<Status> QuerySupport::removeMany(std::span<const std::string> names) {
    std::vector<Status> ends;
    ends.reserve(names.size());
    for (const std::string& name : names) {
        ends.push_back(remove(name));
    }
    return ends;
}

}  // namespace nixl
