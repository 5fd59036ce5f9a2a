// One posted transfer: a job of up to two parts, one for the queue engine (O_DIRECT) and one for
// the thread pool (page cache), drawn by the engines through their schedulers.
//
// Threads: start() and cancel() from any thread, one start at a time; the rest on engine threads.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "request_builder.h"

namespace nixl::posix {

class InlineQueue;
class Job;
class Scheduler;

// What all jobs of a backend share.
struct Shared {
    Shared(const char* plugin_name,
           Devices& gpus,
           size_t fd_capacity,
           size_t bounce_count,
           size_t bounce_bytes,
           void* bounce_memory = nullptr)
        : plugin(plugin_name),
          devices(gpus),
          files(std::make_shared<FdCache>(fd_capacity)),
          bounces(gpus, bounce_count, bounce_bytes, bounce_memory) {}

    const char* const plugin;  // whose name messages bear; static text

    Devices& devices;
    const std::shared_ptr<FdCache> files;
    BouncePool bounces;
    std::atomic<uint64_t> epoch{1};     // numbers posts and refusals of O_DIRECT
    std::atomic<uint64_t> refusals{0};  // files that refused O_DIRECT in use
    std::atomic<bool> closing{false};   // drop what is queued
    std::atomic<int> parked{0};         // parts waiting for descriptors or bounce buffers
    std::atomic<bool> toldMemlock{false};
    LogInfo log;
    Scheduler* queue = nullptr;  // the same as pool where threads do everything
    Scheduler* pool = nullptr;
    InlineQueue* small = nullptr;  // takes small O_DIRECT transfers; null where there is none

    void wakeParked();
};

// The bytes of one job that take one route.
class Part {
  public:
    enum class Filled : uint8_t { MORE, END, WAIT };

    Part(Job& job,
         const TransferPlan& plan,
         Route route,
         BuildLimits limits,
         Shared& shared,
         Scheduler& scheduler);

    void rewind(uint64_t epoch);
    void start();  // leaves it to the scheduler
    // The same for one who submits the first requests at once: `submit(count)` hands as many of
    // `entries` to the kernel. The scheduler gets what is left.
    void begin(std::span<IoRequest*> entries, const std::function<void(size_t)>& submit);
    // Fills entries[count…limit) up to `budget` bytes in all.
    Filled fill(std::span<IoRequest*> entries,
                size_t& count,
                size_t limit,
                uint64_t& bytes,
                uint64_t budget);
    void drop();  // one request, or the place in the scheduler, is finished; may destroy the job
    // True where a second thread would only wait for the first.
    bool single() const { return single_; }
    // Keeps the place in the scheduler until the requests in flight are finished. REQUIRES: there
    // are some, and the caller has the place.
    void hold() { pending_.fetch_or(kHeld); }
    Job& job() { return job_; }

  private:
    Job& job_;
    RequestBuilder builder_;
    bool gather(IoRequest& request);

    static constexpr uint64_t kHeld = 1ULL << 63;

    Scheduler& scheduler_;
    const bool single_;
    std::atomic<uint64_t> pending_{0};  // requests in flight, 1 for the place, and kHeld
};

class Job {
  public:
    Job(const TransferPlan& plan,
        BuildLimits queue_limits,
        BuildLimits pool_limits,
        Shared& shared);

    // Keeps the caller's files open until the post that follows has ended. Fails where a
    // descriptor number belongs to another file than the registered one.
    Status holdFiles();
    Status checkFiles() const { return holds_.check(); }  // as that, holding nothing
    void start(CompletionPtr completion);
    void cancel();
    bool canceled() const { return canceled_.load() || shared_.closing.load(); }
    void dropped() { dropped_.store(true); }
    void fail(const IoRequest& request, int error, const std::string& detail = {});
    void partDone();
    // Whether the page cache serves all of it.
    bool buffered() const { return !usesQueue_; }
    // Whether its O_DIRECT I/O is so little that whoever posts may submit it.
    bool light() const;
    // What a caller who waits for the post can do for it.
    void help() const;
    uint64_t epoch() const { return epoch_; }
    const Shared& sharedState() const { return shared_; }

  private:
    void finish();

    const TransferPlan& plan_;
    Shared& shared_;
    Part queuePart_;
    Part poolPart_;
    FileHolds holds_;
    bool usesQueue_ = false;
    bool usesPool_ = false;
    bool light_ = false;
    uint64_t refusalsSeen_ = 0;
    uint64_t epoch_ = 0;
    std::chrono::steady_clock::time_point posted_;
    CompletionPtr completion_;
    std::atomic<bool> canceled_{false};
    std::atomic<bool> dropped_{false};
    std::atomic<unsigned> partsLeft_{0};
    std::atomic<bool> poolLater_{false};

    std::mutex mutex_;  // guards what follows
    std::vector<SegmentFailure> failures_;
    std::string firstFailure_;
    int firstErrno_ = 0;
};

// Hands the parts of many jobs to one engine in turn.
class Scheduler final : public RequestSource {
  public:
    explicit Scheduler(Shared& shared) : shared_(shared) {}

    void setEngine(Engine* engine) { engine_ = engine; }
    Engine* engine() const { return engine_; }
    void add(Part& part);
    // As add, for a thread that will draw next itself.
    void push(Part& part);
    // A request that was drawn elsewhere and is not finished: the engine goes on with it.
    void handBack(IoRequest& request);
    // Makes parked parts try again, and the engine look.
    void wake();

    size_t draw(std::span<IoRequest*> entries, uint64_t byte_budget) override;
    bool complete(IoRequest& request, int64_t result) override;
    bool hasWork() const override { return activeCount_.load() > 0; }
    bool abandoned(const IoRequest& request) const override;
    // Makes a bounce buffer known to the kernel and, for GPU memory, to the driver; once.
    Devices& devices() const { return shared_.devices; }
    void prepareBounce(const IoRequest& request);
    // Gives back what a request holds but its place in the part.
    void giveBack(IoRequest& request);

  private:
    bool takeReturned(IoRequest& request);
    size_t drawReturned(std::span<IoRequest*> entries, uint64_t byte_budget, uint64_t& bytes);
    Part* pop(bool& others);
    void park(Part& part);
    bool finish(IoRequest& request, int64_t result);
    bool useTwin(IoRequest& request);
    bool useBounce(IoRequest& request);
    static void scatterChecked(const IoRequest& request);
    void finish(IoRequest& request);
    void scatter(IoRequest& request);

    Shared& shared_;
    Engine* engine_ = nullptr;
    std::atomic<size_t> activeCount_{0};
    std::mutex mutex_;  // guards what follows
    std::deque<Part*> active_;
    std::vector<IoRequest> returned_;
    std::vector<Part*> parked_;
};

}  // namespace nixl::posix
