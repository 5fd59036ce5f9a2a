// The common loop of the queue-based engines; see loop_engine.h.
#include "loop_engine.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <utility>

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace nixl::posix {

namespace {

struct ThreadStart {
    const char* name;
    std::function<void()> body;
};

void* threadMain(void* argument) {
    const std::unique_ptr<ThreadStart> start(static_cast<ThreadStart*>(argument));
    pthread_setname_np(pthread_self(), start->name);
    start->body();
    return nullptr;
}

}  // namespace

int startThread(const char* name, std::function<void()> body, pthread_t& thread) {
    auto start = std::make_unique<ThreadStart>(ThreadStart{name, std::move(body)});
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&thread, nullptr, threadMain, start.get());
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error == 0) {
        // The thread owns it now.
        static_cast<void>(start.release());  // NOLINT(bugprone-unused-return-value)
    }
    return error;
}

LoopEngine::LoopEngine(const EngineOptions& options, RequestSource& source)
    : options_(options), source_(source) {
    for (unsigned i = 0; i < options.depth; ++i) {
        entries_.push_back(std::make_unique<Entry>());
        entries_.back()->index = i;
        free_.push_back(entries_.back().get());
    }
    drawn_.resize(options.depth);
}

LoopEngine::~LoopEngine() {
    if (wakeFd_ >= 0) {
        close(wakeFd_);
    }
}

std::string LoopEngine::start(const char* thread_name) {
    wakeFd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wakeFd_ < 0) {
        return "eventfd: " + errnoText(errno);
    }
    ended_ = false;
    if (const int error = startThread(thread_name, [this] { run(); }, thread_); error != 0) {
        ended_ = true;
        return "starting its thread: " + errnoText(error);
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return opened_; });
    if (!openError_.empty()) {
        lock.unlock();
        pthread_join(thread_, nullptr);
        return openError_;
    }
    started_ = true;
    return {};
}

void LoopEngine::kick() {
    if (asleep_.exchange(false)) {
        ring();
    }
}

void LoopEngine::ring() {
    const uint64_t one = 1;
    ssize_t written = 0;
    do {
        written = write(wakeFd_, &one, sizeof(one));
    } while (written < 0 && errno == EINTR);
}

bool LoopEngine::stop(double seconds) {
    std::unique_lock lock(mutex_);
    if (!started_) {
        return true;
    }
    stop_ = true;
    asleep_ = true;  // so that kick writes whatever the thread is doing
    kick();
    const bool ended =
        changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return ended_; });
    lock.unlock();
    if (ended) {
        pthread_join(thread_, nullptr);
        started_ = false;
    } else {
        pthread_detach(thread_);
    }
    return ended;
}

void LoopEngine::drainWake() {
    uint64_t count = 0;
    while (read(wakeFd_, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
}

void LoopEngine::finished(Entry& entry, int64_t result) {
    const uint64_t before = entry.request.length;
    if (source_.complete(entry.request, result)) {
        bytesInFlight_ -= before - entry.request.length;
        again_.push_back(&entry);
        return;
    }
    bytesInFlight_ -= before;
    free_.push_back(&entry);
}

void LoopEngine::runOnThread(const std::function<void()>& task) {
    std::unique_lock lock(mutex_);
    if (ended_) {
        return;
    }
    if (pthread_equal(pthread_self(), thread_) != 0) {
        lock.unlock();
        task();
        return;
    }
    tasks_.push_back(&task);
    haveTasks_ = true;
    asleep_ = true;
    kick();
    changed_.wait(lock, [this, &task] {
        return std::find(tasks_.begin(), tasks_.end(), &task) == tasks_.end();
    });
}

void LoopEngine::runTasks() {
    if (!haveTasks_.load()) {
        return;
    }
    const std::lock_guard lock(mutex_);
    for (const auto* task : tasks_) {
        (*task)();
    }
    tasks_.clear();
    haveTasks_ = false;
    changed_.notify_all();
}

bool LoopEngine::stopping() {
    const std::lock_guard lock(mutex_);
    return stop_;
}

void LoopEngine::fill() {
    taken_.swap(again_);
    for (Entry* entry : taken_) {
        enqueue(*entry);
    }
    taken_.clear();
    while (!free_.empty() && bytesInFlight_ < options_.maxBytesInFlight) {
        const size_t wanted = free_.size();
        for (size_t i = 0; i < wanted; ++i) {
            drawn_[i] = &free_[wanted - 1 - i]->request;
        }
        const size_t count =
            source_.draw({drawn_.data(), wanted}, options_.maxBytesInFlight - bytesInFlight_);
        if (count == 0) {
            return;
        }
        taken_.assign(free_.rbegin(), free_.rbegin() + static_cast<ptrdiff_t>(count));
        free_.resize(wanted - count);
        for (Entry* entry : taken_) {  // a request that fails at once is back in free_ already
            bytesInFlight_ += entry->request.length;
            enqueue(*entry);
        }
        taken_.clear();
    }
}

// True when nothing can be done before an event; then kick() writes the wake descriptor.
bool LoopEngine::quiet() {
    if (!again_.empty()) {
        return false;
    }
    asleep_ = true;
    const bool room = !free_.empty() && bytesInFlight_ < options_.maxBytesInFlight;
    if ((room && source_.hasWork()) || haveTasks_.load()) {
        asleep_ = false;
        return false;
    }
    return true;
}

void LoopEngine::run() {
    std::string error = openQueue();
    {
        const std::lock_guard lock(mutex_);
        opened_ = true;
        openError_ = error;
        changed_.notify_all();
    }
    while (error.empty()) {
        runTasks();
        fill();
        if (inFlight() == 0 && again_.empty() && stopping()) {
            break;
        }
        step(quiet());
        asleep_ = false;
    }
    closeQueue();
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
}

}  // namespace nixl::posix
