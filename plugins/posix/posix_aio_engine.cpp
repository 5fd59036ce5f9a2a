// POSIX AIO (the C library's threads). It takes one buffer a request and works one request a
// descriptor at a time, so each request runs on a duplicate of its descriptor.
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <utility>

#include <aio.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "loop_engine.h"

namespace nixl::posix {

namespace {

constexpr unsigned kMaxDepth = 16;  // each becomes a thread of the C library
constexpr int kIdleSeconds = 20;    // before such a thread ends; starting 16 takes a millisecond

// The C library starts threads from its own threads, which the thread sanitizer does not know:
// it crashes in their first malloc.
#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
#else
constexpr bool kThreadSanitizer = false;
#endif

// A thread that sleeps in aio_suspend while requests are in progress and rings the engine when one
// has ended. (A notice by SIGEV_THREAD is a new thread for each request, started under the C
// library's one lock.)
//
// Threads: watch() on the engine's thread; start and stop by whoever owns it.
class Watcher {
  public:
    // `ring` is called on the watcher's thread. 0 or an errno.
    int start(std::function<void()> ring) {
        ring_ = std::move(ring);
        const int error = startThread("nixl-posix-pawt", [this] { run(); }, thread_);
        started_ = error == 0;
        return error;
    }

    // From now on these are in progress. They stay valid until the engine has ended.
    void watch(const std::vector<const aiocb*>& requests) {
        const std::lock_guard lock(mutex_);
        watched_ = requests;
        ++version_;
        changed_.notify_one();
    }

    // REQUIRES: nothing is in progress.
    void stop() {
        if (!started_) {
            return;
        }
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
            changed_.notify_one();
        }
        pthread_join(thread_, nullptr);
        started_ = false;
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return stop_ || !watched_.empty(); });
            if (stop_) {
                return;
            }
            const std::vector<const aiocb*> requests = watched_;
            const uint64_t seen = version_;
            lock.unlock();
            const timespec limit{0, kTickNs};
            const bool ended =
                aio_suspend(requests.data(), static_cast<int>(requests.size()), &limit) == 0;
            if (ended) {
                ring_();
            }
            lock.lock();
            if (ended) {  // the engine answers with what is left
                changed_.wait_for(lock, kAnswer, [&] { return stop_ || version_ != seen; });
            }
        }
    }

    static constexpr auto kAnswer = std::chrono::milliseconds(1);
    // Requests that came meanwhile are not in the list of a running aio_suspend.
    static constexpr long kTickNs = 2'000'000;

    std::function<void()> ring_;
    pthread_t thread_{};
    bool started_ = false;

    std::mutex mutex_;  // guards what follows
    std::condition_variable changed_;
    std::vector<const aiocb*> watched_;
    uint64_t version_ = 0;
    bool stop_ = false;
};

class PosixAioEngine final : public LoopEngine {
  public:
    PosixAioEngine(const EngineOptions& options, RequestSource& source)
        : LoopEngine(options, source), blocks_(options.depth) {}

    const char* name() const override { return "POSIX AIO"; }
    bool vectored() const override { return false; }

  protected:
    std::string openQueue() override {
        if (const int error = watcher_.start([this] { ring(); }); error != 0) {
            return "starting its thread: " + errnoText(error);
        }
        aioinit init{};
        init.aio_threads = static_cast<int>(options().depth);
        init.aio_num = static_cast<int>(options().depth);
        init.aio_idle_time = kIdleSeconds;
        aio_init(&init);
        return {};
    }

    void closeQueue() override { watcher_.stop(); }

    void enqueue(Entry& entry) override {
        const IoRequest& request = entry.request;
        Block& block = blocks_[entry.index];
        const int duplicate = fcntl(request.fd, F_DUPFD_CLOEXEC, 0);
        block.duplicate = duplicate;
        std::memset(&block.control, 0, sizeof(block.control));
        block.control.aio_fildes = duplicate >= 0 ? duplicate : request.fd;
        block.control.aio_offset = static_cast<off_t>(request.offset);
        block.control.aio_buf = request.vectors->iov_base;
        block.control.aio_nbytes = request.vectors->iov_len;
        block.control.aio_sigevent.sigev_notify = SIGEV_NONE;
        const int result =
            request.op == IoOp::WRITE ? aio_write(&block.control) : aio_read(&block.control);
        if (result == 0) {
            active_.push_back(&entry);
            changed_ = true;
        } else {
            refused_.emplace_back(&entry, errno);
        }
    }

    void step(bool wait) override {
        const auto refused = std::exchange(refused_, {});
        for (const auto& [entry, error] : refused) {
            end(*entry, error == EAGAIN ? -ENOMEM : -error);
        }
        if (std::exchange(changed_, false)) {
            watched_.clear();
            for (const Entry* entry : active_) {
                watched_.push_back(&blocks_[entry->index].control);
            }
            watcher_.watch(watched_);
        }
        if (wait && refused.empty()) {
            pollfd descriptor{wakeFd(), POLLIN, 0};
            poll(&descriptor, 1, -1);
        }
        drainWake();
        sweep();
    }

  private:
    struct Block {
        aiocb control{};
        int duplicate = -1;
    };

    void sweep() {
        for (size_t i = 0; i < active_.size();) {
            Entry& entry = *active_[i];
            aiocb& control = blocks_[entry.index].control;
            const int error = aio_error(&control);
            if (error == EINPROGRESS) {
                ++i;
                continue;
            }
            active_[i] = active_.back();
            active_.pop_back();
            changed_ = true;
            const ssize_t result = aio_return(&control);
            end(entry, error != 0 ? -error : result);
        }
    }

    void end(Entry& entry, int64_t result) {
        if (int& duplicate = blocks_[entry.index].duplicate; duplicate >= 0) {
            close(duplicate);
            duplicate = -1;
        }
        finished(entry, result);
    }

    std::vector<Block> blocks_;
    std::vector<Entry*> active_;
    bool changed_ = false;  // active_, since the watcher was told
    std::vector<std::pair<Entry*, int>> refused_;
    std::vector<const aiocb*> watched_;
    Watcher watcher_;
};

}  // namespace

EngineOrReason makePosixAioEngine(const EngineOptions& options, RequestSource& source) {
    if (kThreadSanitizer) {
        return {nullptr, "it does not work under the thread sanitizer"};
    }
    EngineOptions limited = options;
    limited.depth = options.depth < kMaxDepth ? options.depth : kMaxDepth;
    auto engine = std::make_unique<PosixAioEngine>(limited, source);
    if (std::string reason = engine->start("nixl-posix-paio"); !reason.empty()) {
        return {nullptr, reason};
    }
    return {std::move(engine), {}};
}

}  // namespace nixl::posix
