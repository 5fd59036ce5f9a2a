// See store_thread.h.
#include "exchange/store_thread.h"

#include <condition_variable>
#include <deque>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "base/threads.h"

namespace nixl::exchange {

struct StoreThread::State {
    struct Task {
        std::function<void(const Finish&)> work;
        std::function<void(Status)> ended;
    };

    void loop();
    void idleAWhile() NIXL_REQUIRES(mutex);

    std::function<void()> idle;
    std::chrono::milliseconds pause{0};
    std::string name;
    base::ProcessMark process;
    Mutex mutex;
    std::condition_variable_any changed;
    std::deque<Task> tasks NIXL_GUARDED_BY(mutex);
    Task* current NIXL_GUARDED_BY(mutex) = nullptr;
    bool telling NIXL_GUARDED_BY(mutex) = false;  // the current one calls back right now
    bool idling NIXL_GUARDED_BY(mutex) = false;
    bool started NIXL_GUARDED_BY(mutex) = false;
    bool stop NIXL_GUARDED_BY(mutex) = false;
    bool over NIXL_GUARDED_BY(mutex) = false;
};

// Waits for tasks with the lock held; calls idle() without it.
void StoreThread::State::idleAWhile() NIXL_NO_TSA {
    if (!idle) {
        changed.wait(mutex);
        return;
    }
    if (changed.wait_for(mutex, pause) == std::cv_status::timeout && tasks.empty() && !stop) {
        idling = true;
        mutex.unlock();
        idle();
        mutex.lock();
        idling = false;
        changed.notify_all();
    }
}

void StoreThread::State::loop() NIXL_NO_TSA {
    mutex.lock();
    while (!stop) {
        if (tasks.empty()) {
            idleAWhile();
            continue;
        }
        Task task = std::move(tasks.front());
        tasks.pop_front();
        current = &task;
        mutex.unlock();
        // True, once, for the first one who may tell: this work, or the end of the store.
        task.work([this, &task] {
            const MutexLock lock(mutex);
            if (current != &task) {
                return false;
            }
            current = nullptr;
            telling = true;
            return true;
        });
        task.work = nullptr;
        mutex.lock();
        current = current == &task ? nullptr : current;
        telling = false;
        changed.notify_all();
    }
    mutex.unlock();
    idle = nullptr;  // what it holds goes now, not when the last one lets go of this
    mutex.lock();
    over = true;
    changed.notify_all();
    mutex.unlock();
}

StoreThread::StoreThread(std::string name,
                         std::function<void()> idle,
                         std::chrono::milliseconds pause)
    : state_(std::make_shared<State>()) {
    state_->name = std::move(name);
    state_->idle = std::move(idle);
    state_->pause = pause;
}

StoreThread::~StoreThread() {
    end();
}

void StoreThread::run(std::function<void(const Finish&)> work,
                      const std::function<void(Status)>& ended) {
    Status refused;
    {
        const MutexLock lock(state_->mutex);
        if (state_->stop) {
            refused = Status::canceled("the store has been closed");
        } else if (!state_->started) {
            auto thread = base::startThread(state_->name.c_str(), base::Priority::NORMAL,
                                            [state = state_] { state->loop(); });
            if (thread.ok()) {
                thread.value().detach();
                state_->started = true;
            } else {
                refused = thread.status();
            }
        }
        if (refused.ok()) {
            state_->tasks.push_back({std::move(work), ended});
        }
    }
    if (!refused.ok()) {
        return ended(std::move(refused));
    }
    state_->changed.notify_all();
}

void StoreThread::end() NIXL_NO_TSA {
    if (state_->process.forked()) {
        return;
    }
    const auto limit = std::chrono::steady_clock::now() + kEndPatience;
    std::deque<State::Task> dropped;
    {
        const MutexLock lock(state_->mutex);
        // What an agent takes back at its end is asked for right before.
        while (!state_->tasks.empty() && state_->started && !state_->stop &&
               state_->changed.wait_until(state_->mutex, limit) != std::cv_status::timeout) {
        }
        if (std::exchange(state_->stop, true)) {
            return;
        }
        dropped.swap(state_->tasks);
    }
    state_->changed.notify_all();
    const Status why = Status::canceled("the store has been closed");
    for (State::Task& task : dropped) {
        task.ended(why);
    }
    std::function<void(Status)> late;
    {
        const MutexLock lock(state_->mutex);
        while (state_->started && !state_->over &&
               state_->changed.wait_until(state_->mutex, limit) != std::cv_status::timeout) {
        }
        if (state_->current != nullptr) {
            late = std::move(state_->current->ended);
            state_->current = nullptr;
        }
        // Whoever is being told is told to the end.
        while (state_->started && (state_->telling || state_->idling)) {
            state_->changed.wait(state_->mutex);
        }
    }
    if (late) {
        late(why);
    }
}

}  // namespace nixl::exchange
