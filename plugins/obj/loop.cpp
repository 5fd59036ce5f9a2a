// See loop.h.
#include "loop.h"

#include <algorithm>
#include <csignal>

#include <curl/curl.h>
#include <pthread.h>

namespace nixl::obj {

namespace {

constexpr int kLongestPause = 1000;  // milliseconds; libcurl has timeouts of its own within
constexpr size_t kSpareExchanges = 64;

// A thread for which signals are somebody else's business.
template <typename Body>
std::thread startQuietThread(const char* name, Body body) {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread thread(std::move(body));
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread.native_handle(), name);
    return thread;
}

}  // namespace

struct Loop::Running {
    std::unique_ptr<Task> task;
    std::unique_ptr<Exchange> exchange;
    Clock::time_point due;
};

Loop::Loop(Scheduler& scheduler, HttpOptions options, size_t capacity)
    : scheduler_(scheduler), options_(std::move(options)), capacity_(capacity) {}

Loop::~Loop() {
    if (thread_.joinable()) {
        stop();
    }
    spare_.clear();
    if (multi_ != nullptr) {
        curl_multi_cleanup(multi_);
    }
}

Status Loop::open() {
    multi_ = openMulti();
    if (multi_ == nullptr) {
        return Status::backend("OBJ: libcurl gives no multi handle: out of memory or descriptors");
    }
    curl_multi_setopt(multi_, CURLMOPT_PIPELINING, static_cast<long>(CURLPIPE_NOTHING));
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(capacity_));
    return {};
}

Status Loop::start() {
    if (thread_.joinable()) {
        return {};
    }
    try {
        thread_ = startQuietThread("nixl-obj", [this] { run(); });
    } catch (const std::system_error& error) {
        return Status::backend(std::string("OBJ: starting a thread: ") + error.what(),
                               error.code().value());
    }
    return {};
}

void Loop::wake() {
    curl_multi_wakeup(multi_);
}

void Loop::scan() {
    scan_ = true;
    wake();
}

void Loop::stop() {
    stop_ = true;
    wake();
    if (thread_.joinable()) {
        thread_.join();
    }
}

void Loop::abandon() {
    if (thread_.joinable()) {
        thread_.detach();
    }
    multi_ = nullptr;
}

void Loop::run() {
    while (!stop_) {
        take();
        resume();
        int still = 0;
        curl_multi_perform(multi_, &still);
        collect();
        if (scan_.exchange(false)) {
            dropCanceled(false);
        }
        if (busy_ < capacity_ && !scheduler_.empty()) {
            continue;
        }
        curl_multi_poll(multi_, nullptr, 0, pause(), nullptr);
    }
    dropCanceled(true);
}

void Loop::take() {
    if (busy_ >= capacity_ || scheduler_.empty()) {
        return;
    }
    const size_t most = std::min(capacity_ - busy_, scheduler_.share());
    for (std::unique_ptr<Task>& task : scheduler_.take(most)) {
        auto running = std::make_unique<Running>();
        running->task = std::move(task);
        ++busy_;
        begin(std::move(running));
    }
}

// The next try of a task.
void Loop::begin(std::unique_ptr<Running> running) {
    HttpRequest request;
    if (running->task->canceled()) {
        running->task->dropped();
    } else if (running->task->prepare(request)) {
        if (spare_.empty()) {
            spare_.push_back(std::make_unique<Exchange>());
        }
        running->exchange = std::move(spare_.back());
        spare_.pop_back();
        running->exchange->owner = running.get();
        const bool started = running->exchange->start(multi_, std::move(request), options_);
        running_.push_back(std::move(running));
        if (!started) {
            settle(running_.back().get(), running_.back()->exchange->answer().curlCode);
        }
        return;
    }
    running.reset();
    --busy_;
    scheduler_.taskEnded();
}

void Loop::collect() {
    int left = 0;
    while (const CURLMsg* message = curl_multi_info_read(multi_, &left)) {
        if (message->msg != CURLMSG_DONE) {
            continue;
        }
        const CURLcode code = message->data.result;
        char* self = nullptr;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &self);
        auto* const exchange = reinterpret_cast<Exchange*>(self);
        settle(static_cast<Running*>(exchange->owner), code);
    }
}

void Loop::settle(Running* running, int curl_code) {
    const auto place = std::find_if(running_.begin(), running_.end(),
                                    [running](const auto& one) { return one.get() == running; });
    std::unique_ptr<Running> own = std::move(*place);
    std::swap(*place, running_.back());
    running_.pop_back();
    own->exchange->settle(curl_code);
    const auto delay = own->task->finished(own->exchange->answer());
    if (spare_.size() < kSpareExchanges) {
        spare_.push_back(std::move(own->exchange));
    }
    own->exchange.reset();
    if (delay) {
        own->due = Clock::now() + *delay;
        waiting_.push_back(std::move(own));
        return;
    }
    own.reset();
    --busy_;
    scheduler_.taskEnded();
}

// Tasks whose time for another try has come.
void Loop::resume() {
    const Clock::time_point now = Clock::now();
    for (size_t i = 0; i < waiting_.size();) {
        if (waiting_[i]->due > now) {
            ++i;
            continue;
        }
        std::unique_ptr<Running> due = std::move(waiting_[i]);
        waiting_[i] = std::move(waiting_.back());
        waiting_.pop_back();
        begin(std::move(due));
    }
}

int Loop::pause() const {
    auto wait = std::chrono::milliseconds(kLongestPause);
    const Clock::time_point now = Clock::now();
    for (const auto& one : waiting_) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(one->due - now);
        wait = std::clamp(left, std::chrono::milliseconds(0), wait);
    }
    return static_cast<int>(wait.count());
}

void Loop::dropCanceled(bool all) {
    std::vector<std::unique_ptr<Running>> gone;
    for (auto* list : {&running_, &waiting_}) {
        for (size_t i = 0; i < list->size();) {
            if (!all && !(*list)[i]->task->canceled()) {
                ++i;
                continue;
            }
            gone.push_back(std::move((*list)[i]));
            (*list)[i] = std::move(list->back());
            list->pop_back();
        }
    }
    for (std::unique_ptr<Running>& one : gone) {
        one->exchange.reset();  // before the task says that nothing is touched any more
        one->task->dropped();
        one.reset();
        --busy_;
        scheduler_.taskEnded();
    }
}

Scheduler::Scheduler(const HttpOptions& options, unsigned threads, size_t connections) {
    const size_t count = std::min<size_t>(threads, connections);
    for (size_t i = 0; i < count; ++i) {
        const size_t capacity = connections / count + (i < connections % count ? 1 : 0);
        loops_.push_back(std::make_unique<Loop>(*this, options, capacity));
    }
}

Scheduler::~Scheduler() {
    stop();
}

Status Scheduler::open() {
    for (const auto& loop : loops_) {
        NIXL_RETURN_IF_ERROR(loop->open());
    }
    for (const auto& loop : loops_) {
        NIXL_RETURN_IF_ERROR(loop->start());
    }
    return {};
}

namespace {

class SingleTask final : public TaskSource {
  public:
    explicit SingleTask(std::unique_ptr<Task> task) : task_(std::move(task)) {}
    std::unique_ptr<Task> next() override { return std::move(task_); }

  private:
    std::unique_ptr<Task> task_;
};

}  // namespace

void Scheduler::add(std::unique_ptr<Task> task) {
    add(std::make_shared<SingleTask>(std::move(task)), 1);
}

void Scheduler::add(std::shared_ptr<TaskSource> source, size_t count) {
    {
        const std::lock_guard lock(mutex_);
        sources_.push_back({std::move(source), count});
        left_ += count;
    }
    wake(count);
}

// Few tasks go to the first threads, whose connections are warm; many to all.
void Scheduler::wake(size_t count) {
    for (const auto& loop : loops_) {
        const size_t busy = loop->busy();
        if (busy >= loop->capacity()) {
            continue;
        }
        loop->wake();
        const size_t room = std::max<size_t>(1, loop->capacity() / 4);
        if (count <= (busy < room ? room - busy : 0)) {
            return;
        }
        count -= std::min(count, room);
    }
}

size_t Scheduler::share() const {
    return std::max<size_t>(1, (left_.load() + loops_.size() - 1) / loops_.size());
}

std::vector<std::unique_ptr<Task>> Scheduler::take(size_t most) {
    std::vector<std::unique_ptr<Task>> tasks;
    const std::lock_guard lock(mutex_);
    while (tasks.size() < most && !sources_.empty()) {
        Queued first = std::move(sources_.front());
        sources_.pop_front();
        std::unique_ptr<Task> task = first.source->next();
        if (task == nullptr) {
            left_ -= first.left;
            if (underWay_ == 0 && left_ == 0) {
                idle_.notify_all();
            }
            continue;
        }
        ++underWay_;
        tasks.push_back(std::move(task));
        --left_;
        if (--first.left > 0) {
            sources_.push_back(std::move(first));
        }
    }
    return tasks;
}

void Scheduler::cancel() {
    for (const auto& loop : loops_) {
        loop->scan();
    }
}

void Scheduler::taskEnded() {
    const std::lock_guard lock(mutex_);
    if (--underWay_ == 0 && left_ == 0) {
        idle_.notify_all();
    }
}

void Scheduler::drain(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    idle_.wait_for(lock, patience, [this] { return underWay_ == 0 && left_ == 0; });
}

void Scheduler::stop() {
    for (const auto& loop : loops_) {
        loop->stop();
    }
    for (std::unique_ptr<Task>& task : take(SIZE_MAX)) {
        task->dropped();
    }
}

void Scheduler::abandon() {
    for (const auto& loop : loops_) {
        loop->abandon();
    }
    loops_.clear();
}

}  // namespace nixl::obj
