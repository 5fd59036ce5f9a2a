// See work_pool.h.
#include "base/work_pool.h"

#include <algorithm>

#include <sched.h>

#include "base/log.h"

namespace nixl::base {

namespace {

unsigned usableProcessors() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return static_cast<unsigned>(std::max(CPU_COUNT(&set), 1));
    }
    return std::max(std::thread::hardware_concurrency(), 1U);
}

}  // namespace

ThreadPool::ThreadPool(unsigned threads)
    : wanted_(threads != 0 ? threads : std::min(usableProcessors(), kDefaultLimit)),
      running_(std::make_unique<std::vector<std::thread>>()) {}

ThreadPool::~ThreadPool() NIXL_NO_TSA {
    if (process_.forked()) {
        // The threads, and perhaps the owner of the lock, exist in the parent only.
        static_cast<void>(running_.release());  // NOLINT(bugprone-unused-return-value)
        static_cast<void>(changed_.release());  // NOLINT(bugprone-unused-return-value)
        return;
    }
    {
        const MutexLock lock(mutex_);
        stop_ = true;
    }
    changed_->notify_all();
    for (std::thread& thread : *running_) {
        thread.join();
    }
}

size_t ThreadPool::started() const {
    const MutexLock lock(mutex_);
    return running_->size();
}

bool ThreadPool::startOne() {
    auto thread = startThread("nixl-copy", Priority::RESPONSIVE, [this] { loop(); });
    if (!thread.ok()) {
        log(LogLevel::WARN, "work pool: " + thread.status().message());
        return false;
    }
    running_->push_back(std::move(thread).value());
    return true;
}

void ThreadPool::run(std::function<void()> task) {
    if (process_.forked()) {
        return;
    }
    {
        const MutexLock lock(mutex_);
        // A task may queue another one while the pool ends: its threads are being joined.
        const bool short_of_threads =
            !stop_ && tasks_.size() >= idle_ && running_->size() < wanted_;
        if (!short_of_threads || startOne() || !running_->empty()) {
            tasks_.push_back(std::move(task));
            task = nullptr;
        }
    }
    if (task) {
        task();
        return;
    }
    changed_->notify_one();
}

void ThreadPool::loop() {
    while (true) {
        std::function<void()> task;
        {
            const MutexLock lock(mutex_);
            while (tasks_.empty()) {
                if (stop_) {
                    return;
                }
                ++idle_;
                changed_->wait(mutex_);
                --idle_;
            }
            task = std::move(tasks_.front());
            tasks_.pop_front();
        }
        task();
    }
}

}  // namespace nixl::base
