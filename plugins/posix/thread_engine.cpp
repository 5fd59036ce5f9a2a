// A pool of threads doing preadv/pwritev: serves buffered files in every mode, and everything
// where the system permits nothing else. Small requests are drawn in batches.
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "loop_engine.h"

namespace nixl::posix {

namespace {

constexpr size_t kBatch = 4;  // requests drawn at once
constexpr uint64_t kBatchBytes = 128 << 10;
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kLooks = 32;  // at the counter of kicks between two yields: about 1 us

// Tells the processor that this is a waiting loop.
void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class ThreadEngine final : public Engine {
  public:
    ThreadEngine(const EngineOptions& options, RequestSource& source)
        : options_(options), source_(source) {}

    const char* name() const override { return "threads"; }

    std::string start() {
        for (unsigned i = 0; i < options_.threads; ++i) {
            pthread_t thread{};
            {
                const std::lock_guard lock(mutex_);
                ++running_;
            }
            const int error = startThread("nixl-posix-io", [this] { run(); }, thread);
            if (error != 0) {
                const std::lock_guard lock(mutex_);
                --running_;
                if (threads_.empty()) {
                    return "starting a thread: " + errnoText(error);
                }
                break;  // fewer threads do as well
            }
            threads_.push_back(thread);
        }
        return {};
    }

    void kick() override {
        ++kicks_;
        if (spinning_.load()) {
            return;  // it looks at kicks_ again before it sleeps
        }
        bool wake = false;
        {
            const std::lock_guard lock(mutex_);
            wake = idle_ > 0;
        }
        if (wake) {
            changed_.notify_one();
        }
    }

    int lookoutCpu() const override { return lookoutCpu_.load(std::memory_order_relaxed); }

    bool stop(double seconds) override {
        std::unique_lock lock(mutex_);
        stop_ = true;
        changed_.notify_all();
        const bool ended = ended_.wait_for(lock, std::chrono::duration<double>(seconds),
                                           [this] { return running_ == 0; });
        lock.unlock();
        for (const pthread_t thread : threads_) {
            ended ? pthread_join(thread, nullptr) : pthread_detach(thread);
        }
        threads_.clear();
        return ended;
    }

  private:
    void run() {
        std::array<IoRequest, kBatch> requests;
        std::array<IoRequest*, kBatch> entries{};
        for (size_t i = 0; i < kBatch; ++i) {
            entries[i] = &requests[i];
        }
        uint64_t seen = 0;
        for (;;) {
            const size_t count = source_.draw(entries, kBatchBytes);
            for (size_t i = 0; i < count; ++i) {
                perform(*entries[i]);
            }
            if (count == 0 && !spin(seen) && !sleep(seen)) {
                return;
            }
        }
    }

    // Waking a thread costs more than a small write: one idle thread looks out for the next post
    // for a moment. True when there was a kick.
    bool spin(uint64_t& seen) {
        if (spinning_.exchange(true)) {
            return false;
        }
        const auto end = std::chrono::steady_clock::now() + kSpin;
        bool kicked = false;
        do {
            lookoutCpu_.store(sched_getcpu(), std::memory_order_relaxed);
            for (int i = 0; i < kLooks && !kicked; ++i) {
                relax();
                kicked = kicks_.load(std::memory_order_relaxed) != seen;
            }
            if (!kicked) {
                sched_yield();  // the poster may be waiting for this very processor
            }
        } while (!kicked && std::chrono::steady_clock::now() < end);
        spinning_ = false;
        if (kicked) {
            seen = kicks_.load();
        }
        return kicked;
    }

    // Waits for a kick not seen yet; false when the engine stops.
    bool sleep(uint64_t& seen) {
        std::unique_lock lock(mutex_);
        if (seen == kicks_ && !stop_) {
            ++idle_;
            changed_.wait(lock, [this, seen] { return kicks_ != seen || stop_; });
            --idle_;
        }
        if (seen == kicks_ && stop_) {
            --running_;
            ended_.notify_all();
            return false;
        }
        seen = kicks_;
        return true;
    }

    void perform(IoRequest& request) {
        int64_t result = 0;
        do {
            if (source_.abandoned(request)) {
                result = -ECANCELED;
                continue;
            }
            do {
                result = transfer(request);
            } while (result == -EINTR);
        } while (source_.complete(request, result));
    }

    static int64_t transfer(const IoRequest& request) {
        const auto offset = static_cast<off_t>(request.offset);
        const auto count = static_cast<int>(request.vectorCount);
        ssize_t result = 0;
        if (count == 1) {
            const iovec& vector = *request.vectors;
            result = request.op == IoOp::WRITE
                         ? pwrite(request.fd, vector.iov_base, vector.iov_len, offset)
                         : pread(request.fd, vector.iov_base, vector.iov_len, offset);
        } else {
            result = request.op == IoOp::WRITE ? pwritev(request.fd, request.vectors, count, offset)
                                               : preadv(request.fd, request.vectors, count, offset);
        }
        return result < 0 ? -errno : result;
    }

    const EngineOptions options_;
    RequestSource& source_;
    std::vector<pthread_t> threads_;
    std::atomic<uint64_t> kicks_{0};
    std::atomic<bool> spinning_{false};
    std::atomic<int> lookoutCpu_{-1};

    std::mutex mutex_;  // guards what follows
    std::condition_variable changed_;
    std::condition_variable ended_;
    unsigned idle_ = 0;
    unsigned running_ = 0;
    bool stop_ = false;
};

}  // namespace

EngineOrReason makeThreadEngine(const EngineOptions& options, RequestSource& source) {
    auto engine = std::make_unique<ThreadEngine>(options, source);
    if (std::string reason = engine->start(); !reason.empty()) {
        return {nullptr, reason};
    }
    return {std::move(engine), {}};
}

}  // namespace nixl::posix
