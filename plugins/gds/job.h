// One posted transfer, drawn request by request by the engine's threads, and the queue of them.
//
// Threads: start() and cancel() from any thread, one start at a time; draw() under the queue's
// lock; the rest on engine threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "nixl/backend.h"
#include "nixl/services.h"

#include "file.h"

namespace nixl::gds {

class Job;

// What one registration of memory is to cuFile.
struct Memory final : public BackendMemory {
    ~Memory() override;
    const CuFile* library = nullptr;
    const void* registered = nullptr;  // with cuFile; null: it goes by cuFile's own buffers
    int device = -1;                   // a GPU, or host memory
    PluginServices* services = nullptr;
};

// At most max_request_size bytes, contiguous on both sides.
struct Request {
    Job* job = nullptr;
    File* file = nullptr;
    void* handle = nullptr;  // pinned while the request is under way
    uint64_t memory = 0;
    uint64_t offset = 0;
    uint64_t size = 0;
    uint64_t planOffset = 0;
    uint64_t done = 0;
    int device = -1;
};

struct DrawLimits {
    size_t requests = 1;
    uint64_t bytes = 0;    // no further request begins beyond it
    unsigned sharers = 1;  // threads that a transfer should be spread over
};

class Job {
  public:
    // `name`: the backend's, which outlives it.
    Job(const std::string& name, const TransferPlan& plan, uint64_t max_request)
        : name_(name), plan_(plan), maxRequest_(max_request) {}

    // What no post could do.
    static Status check(const TransferPlan& plan);

    OpType op() const { return plan_.op; }
    void start(CompletionPtr completion, uint64_t post);
    void cancel() { canceled_ = true; }
    // Appends requests, all of one device; false when nothing is left to draw. Once it said so
    // drawn() is due.
    bool draw(std::vector<Request>& out, const DrawLimits& limits);
    void drawn() { unref(); }
    // Pins the request's file. OVER: the request has failed; LATER: too many files are open, which
    // whoever waits does not get.
    enum class Opened : uint8_t { YES, OVER, LATER };
    Opened open(Request& request, bool wait);
    void succeed(Request& request);
    void fail(Request& request, const std::string& cause, int error);
    // Sleeps until the end of the post, at most for a moment; at once where it has ended.
    void nap();
    uint64_t bytesDone() const { return bytesDone_.load(std::memory_order_relaxed); }

  private:
    void end(Request& request);
    void unref();
    void finish();

    const std::string& name_;
    const TransferPlan& plan_;
    const uint64_t maxRequest_;
    CompletionPtr completion_;
    uint64_t post_ = 0;
    SegmentCursor cursor_{{}};
    Segment segment_;
    uint64_t within_ = 0;  // bytes of segment_ drawn
    uint64_t segmentsLeft_ = 0;
    std::atomic<bool> canceled_{false};
    std::atomic<bool> dropped_{false};
    std::atomic<uint64_t> refs_{0};  // requests under way, and one while there is more to draw
    std::atomic<uint64_t> bytesDone_{0};
    std::atomic<uint32_t> running_{0};  // what naps sleep on
    std::mutex mutex_;                  // guards what follows
    std::vector<SegmentFailure> failures_;
    std::string firstFailure_;
    int firstErrno_ = 0;
};

// Transfers with something left to draw, served in turn.
class JobQueue {
  public:
    void push(Job* job);
    // Requests of the next transfer; waits for one. False after stop().
    bool draw(std::vector<Request>& out, const DrawLimits& limits);
    // What is left ends as canceled.
    void stop();

  private:
    bool spin();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Job*> jobs_;
    bool stop_ = false;
    std::atomic<uint64_t> pushes_{0};
    std::atomic<bool> spinning_{false};
};

// Moves all of a request by cuFile's plain calls, or fails it. The context of its GPU is current.
void perform(const CuFile& library, Request& request);

}  // namespace nixl::gds
