// What a thread of a rank sleeps on: what happens at its agent, and a bell that others ring.
#pragma once

#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "module.h"

namespace nixl::python {

class KvBell {
  public:
    explicit KvBell(std::shared_ptr<LiveAgent> agent) : agent_(std::move(agent)) {}
    KvBell(const KvBell&) = delete;
    KvBell& operator=(const KvBell&) = delete;
    ~KvBell() {
        for (const int fd : {bell_, events_}) {
            if (fd >= 0) {
                close(fd);
            }
        }
    }

    // Before the thread is started. Without descriptors to spare it sleeps briefly instead.
    void open() {
        bell_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        try {
            // The agent may be closed, and its descriptor's number be another's, meanwhile.
            events_ = fcntl(agent_->get().fileno(), F_DUPFD_CLOEXEC, 0);
        } catch (const Error&) {
            events_ = -1;
        }
    }

    // Ends a sleep, or the next one where none lasts. From any thread; a system call only where the
    // thread sleeps.
    void ring() {
        if (!rung_.exchange(true) && asleep_.load() && bell_ >= 0) {
            const uint64_t one = 1;
            [[maybe_unused]] const ssize_t written = write(bell_, &one, sizeof(one));
        }
    }

    // Sleeps until the bell rings, something happens at the agent or `limit` has passed; negative:
    // no limit. What has happened is to be looked at after it.
    void sleep(std::chrono::milliseconds limit) {
        if (bell_ < 0 || events_ < 0) {
            limit = limit.count() < 0 ? kBlind : std::min(limit, kBlind);
        }
        pollfd watched[] = {{bell_, POLLIN, 0}, {events_, POLLIN, 0}};  // those below 0 are skipped
        asleep_.store(true);
        if (!rung_.load()) {
            poll(watched, std::size(watched), static_cast<int>(limit.count()));
        }
        asleep_.store(false);
        rung_.store(false);
        for (const pollfd& one : watched) {
            if ((one.revents & POLLIN) != 0) {
                uint64_t value = 0;
                [[maybe_unused]] const ssize_t got = read(one.fd, &value, sizeof(value));
            }
        }
    }

  private:
    static constexpr std::chrono::milliseconds kBlind{2};

    const std::shared_ptr<LiveAgent> agent_;
    int bell_ = -1;
    int events_ = -1;
    std::atomic<bool> rung_{false}, asleep_{false};
};

// A thread of a rank. Signals are the application's: it blocks them all.
class KvThread {
  public:
    bool started() const { return thread_.joinable(); }

    template <typename Run>
    void start(Run run) {
        sigset_t all;
        sigset_t before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        thread_ = std::thread(std::move(run));
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        process_ = getpid();
    }

    // Waits for its end; in a child of its process (fork) it does not exist.
    void join() {
        if (thread_.joinable() && process_ == getpid()) {
            thread_.join();
        } else if (thread_.joinable()) {
            thread_.detach();
        }
    }

  private:
    std::thread thread_;
    pid_t process_ = 0;
};

}  // namespace nixl::python
