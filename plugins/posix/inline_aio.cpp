// Linux AIO as a queue for small transfers. Its ring of ends can be looked at without a system
// call; RWF_NOWAIT keeps submission from waiting for the file system.
#include <cerrno>
#include <cstring>

#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inline_queue.h"

namespace nixl::posix {

namespace {

// The head of the ring that io_setup maps; since Linux 2.6.
struct Ring {
    uint32_t id;
    uint32_t size;
    uint32_t head;
    uint32_t tail;
    uint32_t magic;
};
constexpr uint32_t kRingMagic = 0xa10a10a1;

class AioQueue final : public KernelQueue {
  public:
    AioQueue(aio_context_t context, unsigned depth, int event)
        : context_(context), event_(event), blocks_(depth), events_(depth) {}
    ~AioQueue() override { syscall(SYS_io_destroy, context_); }
    AioQueue(const AioQueue&) = delete;
    AioQueue& operator=(const AioQueue&) = delete;

    size_t submit(std::span<IoRequest* const> requests,
                  std::span<const unsigned> entries) override {
        pending_.clear();
        for (size_t i = 0; i < requests.size(); ++i) {
            pending_.push_back(&fill(*requests[i], entries[i]));
        }
        long taken = 0;
        do {
            taken = syscall(SYS_io_submit, context_, pending_.size(), pending_.data());
        } while (taken < 0 && errno == EINTR);
        return taken < 0 ? 0 : static_cast<size_t>(taken);
    }

    bool ended() const override {
        const auto* ring = reinterpret_cast<const Ring*>(context_);
        return ring->magic != kRingMagic || __atomic_load_n(&ring->head, __ATOMIC_RELAXED) !=
                                                __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
    }

    int waitFd() const override { return event_; }

    size_t reap(std::span<KernelEnd> ends) override {
        timespec none{};
        long count = 0;
        do {
            count = syscall(SYS_io_getevents, context_, 0L, ends.size(), events_.data(), &none);
        } while (count < 0 && errno == EINTR);
        for (long i = 0; i < count; ++i) {
            ends[i] = {static_cast<unsigned>(events_[i].data), events_[i].res};
        }
        return count < 0 ? 0 : static_cast<size_t>(count);
    }

  private:
    iocb& fill(const IoRequest& request, unsigned entry) {
        iocb& block = blocks_[entry];
        std::memset(&block, 0, sizeof(block));
        const bool write = request.op == IoOp::WRITE;
        block.aio_data = entry;
        block.aio_fildes = static_cast<uint32_t>(request.fd);
        block.aio_offset = static_cast<int64_t>(request.offset);
        block.aio_rw_flags = RWF_NOWAIT;
        block.aio_flags = IOCB_FLAG_RESFD;
        block.aio_resfd = static_cast<uint32_t>(event_);
        if (request.vectorCount == 1) {
            block.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            block.aio_buf = reinterpret_cast<uint64_t>(request.vectors->iov_base);
            block.aio_nbytes = request.vectors->iov_len;
        } else {
            block.aio_lio_opcode = write ? IOCB_CMD_PWRITEV : IOCB_CMD_PREADV;
            block.aio_buf = reinterpret_cast<uint64_t>(request.vectors);
            block.aio_nbytes = request.vectorCount;
        }
        return block;
    }

    const aio_context_t context_;
    const int event_;
    std::vector<iocb> blocks_;
    std::vector<io_event> events_;
    std::vector<iocb*> pending_;
};

}  // namespace

std::unique_ptr<KernelQueue> openAioQueue(unsigned depth, int event) {
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, depth, &context) < 0) {
        return nullptr;
    }
    return std::make_unique<AioQueue>(context, depth, event);
}

}  // namespace nixl::posix
