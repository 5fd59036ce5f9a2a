// The hot path of nixl.disaggregation: pages of a KV cache, named by their numbers, are written to
// a peer by a thread that never needs the GIL. A scheduler hands a job over within a microsecond
// and looks at its state, one atomic load; index arithmetic, preparing and posting are not its
// time.
//
// Threads: a KvPusher owns one thread, started with the first job and joined by close() or its
// destructor; it alone posts jobs and sees them end. A KvJob is shared by that thread and by
// Python; its mutex guards what is not atomic.
#pragma once

#include <deque>
#include <mutex>

#include <nanobind/stl/shared_ptr.h>
#include <sched.h>

#include "indices.h"
#include "kv_bell.h"
#include "module.h"

namespace nixl::python {

enum class JobState : uint8_t { QUEUED, POSTED, DONE, FAILED, CANCELED };

// One side of a pair: `buffers` blocks of `block` descriptors, `each` of them a page.
struct KvSide {
    HandleId list = 0;
    int64_t block = 0;
    std::vector<int32_t> pages;
};

// Whose job it is: told by the pusher's thread that one has ended.
class KvJobOwner {
  public:
    KvJobOwner() = default;
    KvJobOwner(const KvJobOwner&) = delete;
    KvJobOwner& operator=(const KvJobOwner&) = delete;
    virtual ~KvJobOwner() = default;
    virtual void jobEnded() = 0;
};

// Shared as C++ shares: an owner that Python's reference counts would need the GIL to go.
class KvJob : public std::enable_shared_from_this<KvJob> {
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

    void setOwner(std::weak_ptr<KvJobOwner> owner) {
        const std::lock_guard lock(mutex_);
        owner_ = std::move(owner);
    }

    // As the pusher's thread last saw it.
    JobState state() {
        const JobState seen = state_.load(std::memory_order_acquire);
        if (seen != JobState::POSTED || agent_->ifOpen() != nullptr) {
            return seen;
        }
        const std::lock_guard lock(mutex_);  // the thread is gone
        settle();
        return state_.load(std::memory_order_acquire);
    }

    // Whether it is over; asks the transfer. Called by the pusher's thread alone, as post().
    bool ended() {
        std::shared_ptr<KvJobOwner> owner;
        {
            const std::unique_lock lock(mutex_, std::try_to_lock);  // else it is being cancelled
            if (lock.owns_lock()) {
                settle();
            }
            if (!lock.owns_lock() || state_.load() <= JobState::POSTED) {
                return false;
            }
            owner = owner_.lock();
            owner_.reset();
        }
        if (owner != nullptr) {
            owner->jobEnded();
        }
        return true;
    }

    std::string error() {
        const std::lock_guard lock(mutex_);
        return error_;
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
    std::weak_ptr<KvJobOwner> owner_;
};

class KvPusher {
  public:
    KvPusher(const RawAgent& agent, size_t window)
        : agent_(agent.live), window_(window), bell_(agent.live) {}
    KvPusher(const KvPusher&) = delete;
    KvPusher& operator=(const KvPusher&) = delete;
    ~KvPusher() { close(); }

    // Jobs wait until ring().
    void push(std::shared_ptr<KvJob> job) {
        const std::lock_guard lock(mutex_);
        if (closed_.load()) {
            throw Error(Status::notAllowed("the pusher was closed"));
        }
        if (!thread_.started()) {
            bell_.open();
            thread_.start([this] { run(); });
        }
        queue_.push_back(std::move(job));
    }
    void ring() { bell_.ring(); }

    size_t queued() {
        const std::lock_guard lock(mutex_);
        return queue_.size();
    }

    void close() {
        KvThread thread;
        {
            const std::lock_guard lock(mutex_);
            closed_.store(true);
            std::swap(thread, thread_);
        }
        bell_.ring();
        thread.join();
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
    // Others who use the agent may take the news of it that this thread sleeps for.
    static constexpr std::chrono::milliseconds kLookAgain{5};
    static constexpr std::chrono::milliseconds kForever{-1};

    void run() {
        // A batch thread takes no processor from who wakes it: the scheduler, inside send().
        const sched_param none{};
        pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
        while (!closed_.load()) {
            std::erase_if(underWay_,
                          [](const std::shared_ptr<KvJob>& job) { return job->ended(); });
            if (const std::shared_ptr<KvJob> job = next(); job != nullptr) {
                job->post();
                underWay_.push_back(job);
            } else {
                bell_.sleep(underWay_.empty() ? kForever : kLookAgain);
            }
        }
    }

    // Null where none waits, or as many are under way as the window allows.
    std::shared_ptr<KvJob> next() {
        const std::lock_guard lock(mutex_);
        if (queue_.empty() || underWay_.size() >= window_) {
            return nullptr;
        }
        std::shared_ptr<KvJob> job = std::move(queue_.front());
        queue_.pop_front();
        return job;
    }

    const std::shared_ptr<LiveAgent> agent_;
    const size_t window_;
    KvBell bell_;
    std::atomic<bool> closed_{false};
    std::mutex mutex_;
    std::deque<std::shared_ptr<KvJob>> queue_;
    std::vector<std::shared_ptr<KvJob>> underWay_;  // the thread's own
    KvThread thread_;
};

// The pages of a job's side, from an integer array or list; a number that fits no page is -1.
std::vector<int32_t> readPages(nb::handle pages, const char* name);

}  // namespace nixl::python
