// Threads of the engines; see engine.h.
#include "engine.h"

#include <chrono>
#include <csignal>

namespace nixl::gds {

struct Threads::Start {
    Threads* owner;
    const char* name;
    std::function<void()> body;
};

void* Threads::run(void* argument) {
    const std::unique_ptr<Start> start(static_cast<Start*>(argument));
    pthread_setname_np(pthread_self(), start->name);
    start->body();
    const std::lock_guard lock(start->owner->mutex_);
    --start->owner->running_;
    start->owner->ended_.notify_all();
    return nullptr;
}

int Threads::start(const char* name, std::function<void()> body) {
    auto start = std::make_unique<Start>(Start{this, name, std::move(body)});
    {
        const std::lock_guard lock(mutex_);
        ++running_;
    }
    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread{};
    const int error = pthread_create(&thread, nullptr, &run, start.get());
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    if (error != 0) {
        const std::lock_guard lock(mutex_);
        --running_;
        return error;
    }
    [[maybe_unused]] const Start* taken = start.release();  // the thread's
    threads_.push_back(thread);
    return 0;
}

bool Threads::join(double seconds) {
    std::unique_lock lock(mutex_);
    const bool ended = ended_.wait_for(lock, std::chrono::duration<double>(seconds),
                                       [this] { return running_ == 0; });
    lock.unlock();
    for (const pthread_t thread : threads_) {
        ended ? pthread_join(thread, nullptr) : pthread_detach(thread);
    }
    threads_.clear();
    return ended;
}

}  // namespace nixl::gds
