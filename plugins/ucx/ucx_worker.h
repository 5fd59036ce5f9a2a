// One UCX worker with the thread that drives it: all calls into UCX's worker happen there. Sleeps
// on the worker's event descriptor when nothing moves.
//
// Threads: public calls from any thread. Jobs end on the worker's thread.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "nixl/backend.h"

#include "ucx_context.h"

namespace nixl::ucx {

// A worker's share of one post. `done` is called once; what is spanned must be valid until then.
struct UcxJob {
    bool read = false;
    std::string peer;                          // key of an address given by addPeer
    std::span<const PlanRun> runs;             // no segment larger than kUcxPiece
    std::span<const std::string* const> keys;  // packed key per remote region index
    const Completion* completion = nullptr;    // its cancelRequested is honoured
    std::function<void(Status)> done;
};

inline constexpr uint64_t kUcxPiece = 1 << 20;

class UcxWorker {
  public:
    static Result<std::unique_ptr<UcxWorker>> create(std::shared_ptr<UcxContext> context);
    // Ends what is in progress with CANCELED.
    ~UcxWorker();
    UcxWorker(const UcxWorker&) = delete;
    UcxWorker& operator=(const UcxWorker&) = delete;

    const std::string& address() const { return address_; }

    void addPeer(const std::string& key, std::string address);
    // Ends the jobs with the peer by `why`; what is begun afterwards connects anew.
    void losePeer(const std::string& key, const Status& why, bool forget);
    void run(UcxJob job);
    // Has the worker look at its jobs' completions.
    void wake();

  private:
    struct Endpoint;
    struct Active;
    using EndpointPtr = std::shared_ptr<Endpoint>;
    using ActivePtr = std::shared_ptr<Active>;
    using Clock = std::chrono::steady_clock;
    // READs have an endpoint of their own: closing it by force, to let go of memory, fails nobody,
    // since what was read can be read again.
    using EndpointKey = std::pair<std::string, bool>;  // peer, read

    explicit UcxWorker(std::shared_ptr<UcxContext> context)
        : context_(std::move(context)), ucx_(context_->library()) {}
    Status open();
    Status startThread();
    void loop();
    void sleep();
    void post(std::function<void()> task);
    bool takeWork();
    void closeAll();
    bool busy() const;

    Status connect(Active& active);
    Result<EndpointPtr> endpoint(const EndpointKey& key);
    Status unpack(Endpoint& endpoint, const std::string& key, ucp_rkey_h& rkey);
    void drop(const EndpointKey& key, ucs_status_t why);
    void retire(const EndpointKey& key);
    void forceClosed(const EndpointPtr& endpoint, ucs_status_t why);
    bool sweepEndpoints();

    bool step(Active& active);
    void issue(Active& active);
    void flush(Active& active);
    bool started(Active& active, void* request) const;
    static void ended(void* request, ucs_status_t status, void* user_data);
    void fail(Active& active, ucs_status_t status) const;
    void heedCancel(Active& active);
    bool restart(Active& active);
    Status end(const Active& active) const;
    Status failure(const std::string& what, ucs_status_t status) const;

    static constexpr size_t kWindow = 256;             // operations of one job in flight
    static constexpr uint64_t kWindowBytes = 8 << 20;  // the same in bytes: what cancel waits for
    static constexpr unsigned kAttempts = 3;
    // How long a cancelled READ waits for what UCX has taken, before its endpoint is closed.
    static constexpr auto kPatience = std::chrono::milliseconds(50);
    static constexpr auto kRetireLimit = std::chrono::milliseconds(200);
    static constexpr auto kEndLimit = std::chrono::seconds(1);

    const std::shared_ptr<UcxContext> context_;
    const UcxLibrary& ucx_;
    ucp_worker_h worker_ = nullptr;
    std::string address_;
    int eventFd_ = -1;  // of the worker; owned by UCX
    int wakeFd_ = -1;
    std::thread thread_;

    std::mutex mutex_;
    std::deque<std::function<void()>> tasks_;  // guarded by mutex_
    bool stop_ = false;                        // guarded by mutex_

    // Worker's thread only.
    std::map<std::string, std::string> addresses_;
    std::map<EndpointKey, EndpointPtr> endpoints_;
    std::vector<EndpointPtr> retiring_;
    std::vector<EndpointPtr> closing_;
    std::vector<ActivePtr> active_;
};

}  // namespace nixl::ucx
