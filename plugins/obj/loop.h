// Threads that carry requests out, each with a libcurl multi handle and its own pool of kept
// connections, and the queue they draw from.
//
// Threads: Scheduler is thread-safe; a Task's methods run on the loop thread that took it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "nixl/error.h"

#include "http.h"

namespace nixl::obj {

using Clock = std::chrono::steady_clock;

// A request with its repeats. It reports its end itself, once.
class Task {
  public:
    virtual ~Task() = default;
    // Called for each try. An error: the task has reported its end.
    virtual bool prepare(HttpRequest& request) = 0;
    // After a try. A time: try again after it; none: the task has reported its end.
    virtual std::optional<std::chrono::milliseconds> finished(HttpAnswer& answer) = 0;
    // Whether to stop it early. May be asked at any time.
    virtual bool canceled() const = 0;
    // It was stopped early: it reports that.
    virtual void dropped() = 0;
};

// Whoever has tasks to give.
class TaskSource {
  public:
    virtual ~TaskSource() = default;
    // The next one; null where there is none now.
    virtual std::unique_ptr<Task> next() = 0;
};

class Scheduler;

// One thread.
class Loop {
  public:
    Loop(Scheduler& scheduler, HttpOptions options, size_t capacity);
    ~Loop();
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;

    Status open();   // the multi handle; before anything else
    Status start();  // the thread; again: nothing
    void wake();
    void scan();     // looks for canceled tasks
    void stop();     // drops what is under way and joins
    void abandon();  // in a forked child: there is no thread
    size_t busy() const { return busy_.load(std::memory_order_relaxed); }
    size_t capacity() const { return capacity_; }

  private:
    struct Running;
    void run();
    void take();
    void begin(std::unique_ptr<Running> running);
    void collect();
    void dropCanceled(bool all);
    void resume();
    int pause() const;
    void settle(Running* running, int curl_code);

    Scheduler& scheduler_;
    const HttpOptions options_;
    const size_t capacity_;
    CurlMulti* multi_ = nullptr;
    std::thread thread_;
    std::atomic<bool> stop_{false};
    std::atomic<bool> scan_{false};
    std::atomic<size_t> busy_{0};
    std::vector<std::unique_ptr<Running>> running_;  // of the loop thread
    std::vector<std::unique_ptr<Running>> waiting_;  // for their next try
    std::vector<std::unique_ptr<Exchange>> spare_;
};

class Scheduler {
  public:
    Scheduler(const HttpOptions& options, unsigned threads, size_t connections);
    ~Scheduler();

    Status open();
    // `source` has `count` tasks to give now, or fewer.
    void add(std::shared_ptr<TaskSource> source, size_t count);
    void add(std::unique_ptr<Task> task);
    // Some tasks say that they are canceled.
    void cancel();
    // Up to so many tasks.
    std::vector<std::unique_ptr<Task>> take(size_t most);
    bool empty() const { return left_.load() == 0; }
    // How many of the tasks left one loop should take.
    size_t share() const;
    // Waits until nothing is queued or under way, at most so long.
    void drain(std::chrono::milliseconds patience);
    void stop();
    void abandon();
    void taskEnded();

  private:
    struct Queued {
        std::shared_ptr<TaskSource> source;
        size_t left = 0;  // of the tasks it promised
    };
    void wake(size_t count);

    std::vector<std::unique_ptr<Loop>> loops_;
    std::atomic<size_t> left_{0};
    std::mutex mutex_;  // guards what follows
    std::condition_variable idle_;
    size_t underWay_ = 0;
    std::deque<Queued> sources_;
};

}  // namespace nixl::obj
