// The hot path of nixl.disaggregation: pages of a KV cache, named by their numbers, are written to
// a peer by a thread that never needs the GIL. A scheduler hands a job over within a microsecond
// and looks at its state, one atomic load; index arithmetic, preparing and posting are not its
// time.
//
// Threads: a KvPusher owns one thread, started with the first job and joined by close() or its
// destructor. A KvJob is shared by that thread and by Python; its mutex guards what is not atomic.
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
namespace {

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

double now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(since).count();
}

// A decode rank's notifications. Whoever asks an agent for them in quick succession serves its
// sockets; many rooms are polled in a row, and a scheduler's time is not for that: so seldom.
class KvInbox {
  public:
    KvInbox(const RawAgent& agent, nb::object taken)
        : agent_(agent.live), taken_(std::move(taken)) {}

    void look() {
        const double time = now();
        double before = looked_.load(std::memory_order_relaxed);
        if (time - before < kPause || !looked_.compare_exchange_strong(before, time)) {
            return;
        }
        const std::vector<Notification> came = agent_->get().takeNotifications();
        for (const Notification& one : came) {
            if (const nb::object taken = call(); taken.is_valid()) {
                taken(one.from, toBytes(one.message));
            }
        }
    }
    void end() {
        nb::object taken;  // goes after the lock
        const std::lock_guard lock(mutex_);
        std::swap(taken, taken_);
    }

  private:
    static constexpr double kPause = 150e-6;

    nb::object call() {
        const std::lock_guard lock(mutex_);
        return taken_;
    }

    const std::shared_ptr<LiveAgent> agent_;
    std::mutex mutex_;
    nb::object taken_;  // guarded by mutex_
    std::atomic<double> looked_{0};
};

// What poll() of a room looks at: its state, the job that is next to end, a deadline. Python is
// called where one of them asks for it, and does the rest.
class KvWatch {
  public:
    KvWatch(std::shared_ptr<KvInbox> inbox, nb::object slow)
        : inbox_(std::move(inbox)), slow_(std::move(slow)) {}

    int poll() {
        if (const int seen = status_.load(); isFinal(seen)) {
            return seen;
        }
        if (inbox_ != nullptr) {
            inbox_->look();
        }
        if (!isFinal(status_.load()) && due()) {
            if (const nb::object slow = call(); slow.is_valid()) {
                slow();
            }
        }
        return status_.load();
    }

    // The room is over: forgets the call, through which the room may hold this object.
    void end() {
        nb::object slow;  // goes after the lock
        const std::lock_guard lock(mutex_);
        std::swap(slow, slow_);
        job_.reset();
    }

    void watch(std::shared_ptr<KvJob> job) {
        const std::lock_guard lock(mutex_);
        job_ = std::move(job);
    }

    int status() const { return status_.load(); }
    void setStatus(int status) { status_.store(status); }
    void setDeadline(double deadline) { deadline_.store(deadline); }
    double deadline() const { return deadline_.load(); }

  private:
    static bool isFinal(int status) { return status == 0 || status == 4; }  // KVPoll's

    nb::object call() {
        const std::lock_guard lock(mutex_);
        return slow_;
    }

    bool due() {
        std::shared_ptr<KvJob> job;
        {
            const std::lock_guard lock(mutex_);
            job = job_;
        }
        if (job != nullptr) {
            const JobState state = job->state();
            if (state != JobState::QUEUED && state != JobState::POSTED) {
                return true;
            }
        }
        return now() > deadline_.load();
    }

    const std::shared_ptr<KvInbox> inbox_;
    nb::object slow_;  // guarded by mutex_
    std::atomic<int> status_{1};
    std::atomic<double> deadline_{0};
    std::mutex mutex_;
    std::shared_ptr<KvJob> job_;
};

KvSide readSide(const RawAgent& raw,
                const DlistHandle& list,
                int64_t block,
                nb::handle pages,
                const char* name) {
    KvSide side{list.checkedFor(raw, name), block, {}};
    Indices numbers(pages, name);
    if (numbers.narrow()) {
        const std::span<const int32_t> span = numbers.narrowSpan();
        side.pages.assign(span.begin(), span.end());
        return side;
    }
    side.pages.reserve(numbers.size());
    for (const int64_t page : numbers.wideSpan()) {
        side.pages.push_back(page < 0 || page > INT32_MAX ? -1 : static_cast<int32_t>(page));
    }
    return side;
}

void checkShape(const KvSide& local, const KvSide& remote, int64_t each, int64_t buffers) {
    if (local.pages.size() != remote.pages.size()) {
        throw Error(Status::mismatch(std::to_string(local.pages.size()) + " source pages but " +
                                     std::to_string(remote.pages.size()) + " destination pages"));
    }
    if (each < 1 || buffers < 1 || local.block < 1 || remote.block < 1 || local.pages.empty()) {
        throw Error(Status::invalidParam("a job needs at least one page of one buffer"));
    }
}

}  // namespace

void bindKvJobs(nb::module_& module) {
    nb::class_<KvJob>(module, "_KvJob", "Pages on their way; what it holds is freed when it goes.")
        .def_prop_ro("state", [](KvJob& job) { return static_cast<int>(job.state()); })
        .def_prop_ro("error", &KvJob::error)
        .def("cancel", [](KvJob& job) {
            const GilRelease release;
            job.cancel();
        });
    nb::class_<KvPusher>(module, "_KvPusher", "Writes pages of a KV cache on a thread of its own.")
        .def(nb::init<const RawAgent&, size_t>(), nb::arg("agent"), nb::arg("window"))
        .def(
            "push",
            [](KvPusher& self, const RawAgent& raw, const DlistHandle& local, int64_t local_block,
               nb::handle local_pages, const DlistHandle& remote, int64_t remote_block,
               nb::handle remote_pages, int64_t each, int64_t first, int64_t buffers,
               Text notification) {
                KvSide left = readSide(raw, local, local_block, local_pages, "source");
                KvSide right = readSide(raw, remote, remote_block, remote_pages, "destination");
                checkShape(left, right, each, buffers);
                auto job = std::make_shared<KvJob>(self.agent(), std::move(left), std::move(right));
                job->setShape(each, first, buffers, notification.str());
                self.push(job);
                return job;
            },
            nb::arg("agent"), nb::arg("local"), nb::arg("local_block"), nb::arg("local_pages"),
            nb::arg("remote"), nb::arg("remote_block"), nb::arg("remote_pages"), nb::arg("each"),
            nb::arg("first"), nb::arg("buffers"), nb::arg("notif_msg"))
        .def_prop_ro("queued", &KvPusher::queued)
        .def("close", [](KvPusher& pusher) {
            const GilRelease release;
            pusher.close();
        });
    nb::class_<KvInbox>(module, "_KvInbox", "Hands each notification to `taken(from, message)`.")
        .def(nb::init<const RawAgent&, nb::object>(), nb::arg("agent"), nb::arg("taken"))
        .def("look", &KvInbox::look)
        .def("end", &KvInbox::end);
    nb::class_<KvWatch>(module, "_KvWatch",
                        "The state of a room, and when `slow()` is to be called.")
        .def(nb::init<std::shared_ptr<KvInbox>, nb::object>(), nb::arg("inbox").none(),
             nb::arg("slow"))
        .def("poll", &KvWatch::poll)
        .def("watch", &KvWatch::watch, nb::arg("job").none())
        .def("end", &KvWatch::end)
        .def_prop_rw("status", &KvWatch::status, &KvWatch::setStatus)
        .def_prop_rw("deadline", &KvWatch::deadline, &KvWatch::setDeadline);
}

}  // namespace nixl::python
