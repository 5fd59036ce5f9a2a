// The workers of one lane: posts are spread over them, large ones split. Worker i talks to the
// peer's worker i (modulo their number). Threads: any.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/backend.h"

#include "ucx_worker.h"

namespace nixl::ucx {

// A part costs a hand-over, about what moving this much does.
inline constexpr uint64_t kLeastUcxPart = 2 << 20;

// Deals the bytes of runs out into at most `parts` of about the same size, each of segments of at
// most `piece` bytes; parts of less than `least` bytes are not made.
std::vector<std::vector<PlanRun>> dealRuns(
    std::span<const PlanRun> runs, uint64_t bytes, size_t parts, uint64_t piece, uint64_t least);

// What a transfer prepares once and posts often.
struct UcxWork {
    bool read = false;
    std::string peer;
    std::vector<std::vector<PlanRun>> parts;
    std::vector<const std::string*> keys;  // packed key per remote region index
};

class UcxWorkers {
  public:
    static Result<std::shared_ptr<UcxWorkers>> create(const UcxLibrary& ucx,
                                                      const UcxOptions& options);

    UcxContext& context() { return *context_; }
    size_t count() const { return workers_.size(); }
    // All their addresses, for a peer's addPeer.
    const std::string& addresses() const { return addresses_; }

    // INVALID_PARAM where these are no addresses.
    Status addPeer(const std::string& key, std::string_view addresses);
    void removePeer(const std::string& key);
    // Ends what is pending with the peer by `why`.
    void losePeer(const std::string& key, const Status& why);

    // `work` must be valid until `done`, which is called once.
    void run(const UcxWork& work,
             std::shared_ptr<const Completion> completion,
             std::function<void(Status)> done);
    // To be called when a completion's cancelRequested has been set.
    void wake();

  private:
    explicit UcxWorkers(std::shared_ptr<UcxContext> context) : context_(std::move(context)) {}

    const std::shared_ptr<UcxContext> context_;
    std::vector<std::unique_ptr<UcxWorker>> workers_;
    std::string addresses_;
    std::atomic<size_t> next_{0};
};

}  // namespace nixl::ucx
