// What the queue-based engines share: one thread that draws requests into entries, submits them,
// and sleeps in the kernel until something ends or a kick comes. Owned by the backend.
//
// Threads: everything but kick, stop and the buffer calls runs on the engine's thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine.h"

namespace nixl::posix {

// Starts a thread with all signals blocked and a name (at most 15 characters); 0 or an errno.
int startThread(const char* name, std::function<void()> body, pthread_t& thread);

class LoopEngine : public Engine {
  public:
    LoopEngine(const EngineOptions& options, RequestSource& source);
    ~LoopEngine() override;
    LoopEngine(const LoopEngine&) = delete;
    LoopEngine& operator=(const LoopEngine&) = delete;

    // Starts the thread, which opens the queue; a reason when either fails.
    std::string start(const char* thread_name);
    void kick() override;
    bool stop(double seconds) override;

  protected:
    struct Entry {
        IoRequest request;
        unsigned index = 0;
    };

    // On the engine's thread: sets the kernel's queue up (0 or an errno) and takes it down.
    virtual std::string openQueue() = 0;
    virtual void closeQueue() = 0;
    // Takes over one request; its end is told to finished(), at once or later.
    virtual void enqueue(Entry& entry) = 0;
    // Submits what was enqueued, reports what has ended; with `wait` sleeps until at least one
    // request ended or the wake descriptor became readable.
    virtual void step(bool wait) = 0;

    void finished(Entry& entry, int64_t result);
    // Runs `task` on the engine's thread and waits for it.
    void runOnThread(const std::function<void()>& task);
    void drainWake();
    // Ends a wait of step(), from any thread.
    void ring();
    int wakeFd() const { return wakeFd_; }
    const EngineOptions& options() const { return options_; }
    Entry& entryAt(size_t index) { return *entries_[index]; }
    size_t inFlight() const { return entries_.size() - free_.size(); }

  private:
    void run();
    void fill();
    bool stopping();
    void runTasks();
    bool quiet();

    const EngineOptions options_;
    RequestSource& source_;
    int wakeFd_ = -1;
    std::atomic<bool> asleep_{false};
    std::vector<std::unique_ptr<Entry>> entries_;
    std::vector<Entry*> free_;
    std::vector<Entry*> again_;  // partial I/O to submit once more
    std::vector<Entry*> taken_;  // being handed to enqueue()
    std::vector<IoRequest*> drawn_;
    uint64_t bytesInFlight_ = 0;

    std::mutex mutex_;  // guards what follows
    std::condition_variable changed_;
    bool opened_ = false;
    bool ended_ = true;
    bool stop_ = false;
    std::string openError_;
    std::vector<const std::function<void()>*> tasks_;
    std::atomic<bool> haveTasks_{false};
    pthread_t thread_{};
    bool started_ = false;
};

}  // namespace nixl::posix
