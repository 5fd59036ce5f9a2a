// The workers of one lane, in one engine or several: posts are spread over them, large ones split.
// Engine e talks to the peer's engine e (modulo their number), and so do the workers of both.
// Threads: any.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/backend.h"

#include "deal_runs.h"
#include "ucx_worker.h"

namespace nixl::ucx {

// A part costs a hand-over, about what moving this much does.
inline constexpr uint64_t kLeastUcxPart = 2 << 20;

// Strings as one: for each its length (u32, little endian) and itself. Empty where they are none.
std::string packList(std::span<const std::string> all);
std::vector<std::string> unpackList(std::string_view bytes);

// The runs of a plan by engine. A descriptor belongs to the engine of its GPU (device id modulo
// their number; the local side's, else the remote side's, else the local device id). From 4 MiB on
// the engines that no descriptor belongs to help those that have some.
std::vector<std::vector<PlanRun>> dealEngines(const TransferPlan& plan, size_t engines);

// A part of a transfer: for one worker of the engine.
struct UcxPart {
    size_t engine = 0;
    std::vector<PlanRun> runs;
};

// What a transfer prepares once and posts often.
struct UcxWork {
    bool read = false;
    std::string peer;
    std::vector<UcxPart> parts;
    // By engine: packed key per remote region index.
    std::vector<std::vector<const std::string*>> keys;
};

class UcxWorkers {
  public:
    static Result<std::shared_ptr<UcxWorkers>> create(const UcxLibrary& ucx,
                                                      const UcxOptions& options);

    size_t engines() const { return engines_.size(); }
    UcxContext& context(size_t engine) { return *engines_[engine].context; }
    size_t workersOfEngine() const { return engines_.front().workers.size(); }
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
    struct Engine {
        std::shared_ptr<UcxContext> context;
        std::vector<std::unique_ptr<UcxWorker>> workers;
    };

    UcxWorkers() = default;
    void eachWorker(const std::function<void(UcxWorker&)>& call);

    std::vector<Engine> engines_;  // at least one, each with as many workers
    bool several_ = false;
    std::string addresses_;
    std::atomic<size_t> next_{0};
};

}  // namespace nixl::ucx
