// Linux AIO by raw system calls (no libaio). The wake descriptor is polled in the same context
// (IOCB_CMD_POLL), so that one io_getevents waits for both ends and kicks.
#include <cerrno>
#include <cstring>

#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inline_queue.h"
#include "loop_engine.h"

namespace nixl::posix {

namespace {

int ioSetup(unsigned events, aio_context_t* context) {
    return static_cast<int>(syscall(SYS_io_setup, events, context));
}

long ioSubmit(aio_context_t context, long count, iocb** blocks) {
    return syscall(SYS_io_submit, context, count, blocks);
}

long ioGetEvents(aio_context_t context, long minimum, long maximum, io_event* events) {
    timespec zero{};
    return syscall(SYS_io_getevents, context, minimum, maximum, events,
                   minimum == 0 ? &zero : nullptr);
}

class AioEngine final : public LoopEngine {
  public:
    AioEngine(const EngineOptions& options, RequestSource& source)
        : LoopEngine(options, source), blocks_(options.depth), events_(options.depth + 1) {
        pending_.reserve(options.depth + 1);
    }

    const char* name() const override { return "Linux AIO"; }
    OpenInline inlineQueue() const override { return &openAioQueue; }

  protected:
    std::string openQueue() override {
        if (ioSetup(options().depth + 1, &context_) < 0) {
            const int error = errno;
            context_ = 0;
            return error == EAGAIN ? "io_setup: fs.aio-max-nr is used up"
                                   : "io_setup: " + errnoText(error);
        }
        armWake();
        iocb* block = &wakeBlock_;
        if (ioSubmit(context_, 1, &block) != 1) {
            return "io_submit of a poll: " + errnoText(errno);
        }
        pending_.clear();
        return {};
    }

    void closeQueue() override {
        if (context_ != 0) {
            syscall(SYS_io_destroy, context_);
        }
    }

    void enqueue(Entry& entry) override {
        const IoRequest& request = entry.request;
        iocb& block = blocks_[entry.index];
        std::memset(&block, 0, sizeof(block));
        const bool write = request.op == IoOp::WRITE;
        block.aio_data = entry.index;
        block.aio_fildes = static_cast<uint32_t>(request.fd);
        block.aio_offset = static_cast<int64_t>(request.offset);
        if (request.vectorCount == 1) {
            block.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            block.aio_buf = reinterpret_cast<uint64_t>(request.vectors->iov_base);
            block.aio_nbytes = request.vectors->iov_len;
        } else {
            block.aio_lio_opcode = write ? IOCB_CMD_PWRITEV : IOCB_CMD_PREADV;
            block.aio_buf = reinterpret_cast<uint64_t>(request.vectors);
            block.aio_nbytes = request.vectorCount;
        }
        pending_.push_back(&block);
    }

    void step(bool wait) override {
        submit();
        const bool failed_at_once = !failures_.empty();
        for (const auto& [index, error] : failures_) {
            finished(entryAt(index), -error);
        }
        failures_.clear();
        if (wait || submitted_ > 0) {
            reap(wait && !failed_at_once);
        }
    }

  private:
    static constexpr uint64_t kWake = UINT64_MAX;

    void armWake() {
        std::memset(&wakeBlock_, 0, sizeof(wakeBlock_));
        wakeBlock_.aio_lio_opcode = IOCB_CMD_POLL;
        wakeBlock_.aio_fildes = static_cast<uint32_t>(wakeFd());
        wakeBlock_.aio_buf = POLLIN;
        wakeBlock_.aio_data = kWake;
        pending_.push_back(&wakeBlock_);
    }

    void submit() {
        size_t next = 0;
        while (next < pending_.size()) {
            const long count = ioSubmit(context_, static_cast<long>(pending_.size() - next),
                                        pending_.data() + next);
            if (count > 0) {
                next += static_cast<size_t>(count);
                submitted_ += static_cast<size_t>(count);
                continue;
            }
            const int error = count < 0 ? errno : EIO;
            if (error == EINTR) {
                continue;
            }
            if (error == EAGAIN && submitted_ > 1) {  // the wake block alone frees no room
                break;                                // kept for the next step
            }
            if (pending_[next]->aio_data != kWake) {
                failures_.emplace_back(pending_[next]->aio_data, error);
            }
            ++next;
        }
        pending_.erase(pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(next));
    }

    void reap(bool wait) {
        long count = 0;
        do {
            count = ioGetEvents(context_, wait ? 1 : 0, static_cast<long>(events_.size()),
                                events_.data());
        } while (count < 0 && errno == EINTR);
        for (long i = 0; i < count; ++i) {
            --submitted_;
            if (events_[i].data == kWake) {
                drainWake();
                armWake();
            } else {
                finished(entryAt(events_[i].data), events_[i].res);
            }
        }
    }

    aio_context_t context_ = 0;
    std::vector<iocb> blocks_;
    iocb wakeBlock_{};
    std::vector<io_event> events_;
    std::vector<iocb*> pending_;                      // to submit
    std::vector<std::pair<uint64_t, int>> failures_;  // entry and errno of refused ones
    size_t submitted_ = 1;                            // in the kernel, the wake block included
};

}  // namespace

EngineOrReason makeAioEngine(const EngineOptions& options, RequestSource& source) {
    auto engine = std::make_unique<AioEngine>(options, source);
    if (std::string reason = engine->start("nixl-posix-aio"); !reason.empty()) {
        return {nullptr, reason};
    }
    return {std::move(engine), {}};
}

}  // namespace nixl::posix
