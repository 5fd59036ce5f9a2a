// The hot path of nixl.disaggregation: pages of a KV cache, named by their numbers, are written to
// a peer by a thread that never needs the GIL. A scheduler hands a job over within a microsecond
// and looks at its state, one atomic load; index arithmetic, preparing and posting are not its
// time.
//
// Threads: a KvPusher owns one thread, started with the first job and joined by close() or its
// destructor. A KvJob is shared by that thread and by Python; its mutex guards what is not atomic.
#pragma once

#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>
#include <thread>

#include <nanobind/stl/shared_ptr.h>
#include <pthread.h>
#include <sched.h>

#include "indices.h"
#include "module.h"

namespace nixl::python {

enum class JobState : uint8_t { QUEUED, POSTED, DONE, FAILED, CANCELED };

// One side of a pair: `buffers` blocks of `block` descriptors, `each` of them a page.
struct KvSide {
    HandleId list = 0;
    int64_t block = 0;
    std::vector<int32_t> pages;
};

class KvJob {
  public:
    KvJob(std::shared_ptr<LiveAgent> agent, KvSide local, KvSide remote)
        : agent_(std::move(agent)), local_(std::move(local)), remote_(std::move(remote)) {}
    KvJob(const KvJob&) = delete;
    KvJob& operator=(const KvJob&) = delete;
    ~KvJob() { release(); }

    void setShape(int64_t each, int64_t first, int64_t buffers, std::string notification) {
        each_ = each;
        first_ = first;
        buffers_ = buffers;
        notification_ = std::move(notification);
    }

    // Whether it is over; asks the transfer where it was posted.
    JobState state() {
        const JobState seen = state_.load(std::memory_order_acquire);
        if (seen != JobState::POSTED) {
            return seen;
        }
        // Who polls does not wait for whoever is at it.
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (lock.owns_lock()) {
            settle();
        }
        return state_.load(std::memory_order_acquire);
    }

    std::string error() {
        const std::lock_guard lock(mutex_);
        return error_;
    }

    HandleId posted() {
        const std::lock_guard lock(mutex_);
        return id_;
    }

    void cancel() {
        const std::lock_guard lock(mutex_);
        JobState seen = state_.load(std::memory_order_relaxed);
        if (seen == JobState::QUEUED) {
            finish(JobState::CANCELED, "cancelled before it was posted");
            return;
        }
        if (Agent* agent = agent_->ifOpen(); seen == JobState::POSTED && agent != nullptr) {
            try {
                agent->cancelTransfer(id_);
            } catch (const Error& error) {
                finish(JobState::FAILED, error.what());
            }
        }
    }

    // Called by the pusher's thread alone.
    void post() {
        const std::lock_guard lock(mutex_);
        if (state_.load(std::memory_order_relaxed) != JobState::QUEUED) {
            return;
        }
        try {
            Agent& agent = agent_->get();
            const std::vector<int64_t> left = expand(local_, "source");
            const std::vector<int64_t> right = expand(remote_, "destination");
            TransferOptions options;
            if (!notification_.empty()) {
                options.notification = notification_;
            }
            TransferHandle handle =
                agent.prepareTransfer(OpType::WRITE, local_.list, std::span(left), remote_.list,
                                      std::span(right), options);
            agent.postTransfer(handle);
            id_ = handle.detach();
            state_.store(JobState::POSTED, std::memory_order_release);
        } catch (const std::exception& error) {
            finish(JobState::FAILED, error.what());
        }
        local_.pages = {};
        remote_.pages = {};
    }

  private:
    std::vector<int64_t> expand(const KvSide& side, const char* name) const {
        std::vector<int64_t> out;
        out.reserve(side.pages.size() * static_cast<size_t>(each_ * buffers_));
        const int64_t count = side.block / each_;
        for (const int32_t page : side.pages) {
            if (page < 0 || page >= count) {
                throw Error(Status::invalidParam(std::string(name) + " page " +
                                                 std::to_string(page) + " is not one of " +
                                                 std::to_string(count) + " pages"));
            }
        }
        for (int64_t buffer = first_; buffer < first_ + buffers_; ++buffer) {
            for (const int32_t page : side.pages) {
                const int64_t start = buffer * side.block + page * each_;
                for (int64_t i = 0; i < each_; ++i) {
                    out.push_back(start + i);
                }
            }
        }
        return out;
    }

    void settle() {
        if (state_.load(std::memory_order_relaxed) != JobState::POSTED) {
            return;
        }
        Agent* agent = agent_->ifOpen();
        if (agent == nullptr) {
            finish(JobState::FAILED, "the agent was closed");
            return;
        }
        try {
            const XferState now = agent->transferState(id_);
            if (now == XferState::PENDING) {
                return;
            }
            if (now == XferState::DONE) {
                finish(JobState::DONE, {});
            } else {
                finish(JobState::FAILED, agent->transferError(id_).message());
            }
        } catch (const Error& error) {
            finish(JobState::FAILED, error.what());
        }
        release();
    }

    void finish(JobState state, std::string error) {
        error_ = std::move(error);
        state_.store(state, std::memory_order_release);
    }

    void release() {
        Agent* agent = agent_->ifOpen();
        const HandleId id = std::exchange(id_, 0);
        if (id == 0 || agent == nullptr) {
            return;
        }
        try {
            agent->releaseTransfer(id);
        } catch (const Error&) {  // NOLINT(bugprone-empty-catch)
            // The agent is gone, or another process (fork): nothing is left to release.
        }
    }

    const std::shared_ptr<LiveAgent> agent_;
    KvSide local_, remote_;
    int64_t each_ = 1, first_ = 0, buffers_ = 0;
    std::string notification_;
    std::atomic<JobState> state_{JobState::QUEUED};
    std::mutex mutex_;
    HandleId id_ = 0;
    std::string error_;
};

class KvPusher {
  public:
    KvPusher(const RawAgent& agent, size_t window) : agent_(agent.live), window_(window) {}
    KvPusher(const KvPusher&) = delete;
    KvPusher& operator=(const KvPusher&) = delete;
    ~KvPusher() { close(); }

    void push(std::shared_ptr<KvJob> job) {
        const std::lock_guard lock(mutex_);
        if (closed_) {
            throw Error(Status::notAllowed("the pusher was closed"));
        }
        if (!thread_.joinable()) {
            startThread();
        }
        queue_.push_back(std::move(job));
        wake_.notify_one();
    }

    size_t queued() {
        const std::lock_guard lock(mutex_);
        return queue_.size();
    }

    void close() {
        std::thread thread;
        {
            const std::lock_guard lock(mutex_);
            closed_ = true;
            thread.swap(thread_);
            wake_.notify_one();
        }
        if (thread.joinable()) {
            thread.join();
        }
        std::deque<std::shared_ptr<KvJob>> left;
        {
            const std::lock_guard lock(mutex_);
            left.swap(queue_);
        }
        for (const std::shared_ptr<KvJob>& job : left) {
            job->cancel();
        }
    }

    const std::shared_ptr<LiveAgent>& agent() const { return agent_; }

  private:
    static constexpr std::chrono::milliseconds kLookAgain{2};

    // Signals are the application's: the thread blocks them all.
    void startThread() {
        sigset_t all;
        sigset_t before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        thread_ = std::thread([this] { run(); });
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void run() {
        // A batch thread takes no processor from who wakes it: the scheduler, inside send().
        const sched_param none{};
        pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return closed_ || !queue_.empty(); });
            if (closed_) {
                return;
            }
            const std::shared_ptr<KvJob> job = std::move(queue_.front());
            queue_.pop_front();
            lock.unlock();
            makeRoom();
            job->post();
            underWay_.push_back(job);
            lock.lock();
        }
    }

    // Waits while as many are under way as the window allows.
    void makeRoom() {
        while (underWay_.size() >= window_) {
            std::erase_if(underWay_, [](const std::shared_ptr<KvJob>& job) {
                return job->state() != JobState::POSTED;
            });
            Agent* agent = agent_->ifOpen();
            if (underWay_.size() < window_ || agent == nullptr || stopped()) {
                return;
            }
            std::vector<HandleId> ids;
            for (const std::shared_ptr<KvJob>& job : underWay_) {
                if (const HandleId id = job->posted(); id != 0) {
                    ids.push_back(id);
                }
            }
            try {
                if (!ids.empty()) {
                    agent->waitAny(ids, kLookAgain);
                }
            } catch (const Error&) {  // NOLINT(bugprone-empty-catch)
                // One was released by its job meanwhile, or failed: the next look says which.
            }
        }
    }

    bool stopped() {
        const std::lock_guard lock(mutex_);
        return closed_;
    }

    const std::shared_ptr<LiveAgent> agent_;
    const size_t window_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::shared_ptr<KvJob>> queue_;
    bool closed_ = false;
    std::vector<std::shared_ptr<KvJob>> underWay_;  // the thread's own
    std::thread thread_;
};

// The pages of a job's side, from an integer array or list; a number that fits no page is -1.
std::vector<int32_t> readPages(nb::handle pages, const char* name);

}  // namespace nixl::python
