// io_uring as a queue for small transfers: several threads submit, one at a time, so it is a ring
// of its own beside the engine's. What would have to wait goes to threads of the kernel.
#include "inline_queue.h"

#ifdef NIXL_POSIX_URING
#include <cerrno>

#include <liburing.h>

#include "uring_request.h"

namespace nixl::posix {

namespace {

class UringQueue final : public KernelQueue {
  public:
    UringQueue() = default;
    ~UringQueue() override {
        if (open_) {
            io_uring_queue_exit(&ring_);
        }
    }
    UringQueue(const UringQueue&) = delete;
    UringQueue& operator=(const UringQueue&) = delete;

    bool open(unsigned depth) {
        io_uring_params parameters{};
        parameters.flags = IORING_SETUP_CLAMP;
        open_ = io_uring_queue_init_params(depth, &ring_, &parameters) == 0;
        if (open_) {
            io_uring_ring_dontfork(&ring_);
        }
        return open_;
    }

    size_t submit(std::span<IoRequest* const> requests,
                  std::span<const unsigned> entries) override {
        for (size_t i = 0; i < requests.size(); ++i) {
            const IoRequest& request = *requests[i];
            io_uring_sqe* sqe = io_uring_get_sqe(&ring_);  // never more than its entries
            prepareEntry(sqe, request);
            sqe->user_data = entries[i];
        }
        const int taken = io_uring_submit(&ring_);
        const size_t count = taken < 0 ? 0 : static_cast<size_t>(taken);
        if (count < requests.size()) {  // takes back what the kernel has not seen
            ring_.sq.sqe_tail -= static_cast<unsigned>(requests.size() - count);
            __atomic_store_n(ring_.sq.ktail, ring_.sq.sqe_tail, __ATOMIC_RELEASE);
            ring_.sq.sqe_head = ring_.sq.sqe_tail;
        }
        return count;
    }

    // Registering the eventfd would cost each completion more than polling costs the watcher.
    int waitFd() const override { return ring_.ring_fd; }
    // As io_uring_cq_ready(), which reads the head plainly: another thread may be reaping.
    bool ended() const override {
        return __atomic_load_n(ring_.cq.ktail, __ATOMIC_ACQUIRE) !=
               __atomic_load_n(ring_.cq.khead, __ATOMIC_RELAXED);
    }

    size_t reap(std::span<KernelEnd> ends) override {
        unsigned head = 0;
        unsigned count = 0;
        io_uring_cqe* cqe = nullptr;
        io_uring_for_each_cqe(&ring_, head, cqe) {
            if (count == ends.size()) {
                break;
            }
            ends[count++] = {static_cast<unsigned>(cqe->user_data), cqe->res};
        }
        io_uring_cq_advance(&ring_, count);
        return count;
    }

  private:
    io_uring ring_{};
    bool open_ = false;
};

}  // namespace

std::unique_ptr<KernelQueue> openUringQueue(unsigned depth, int /*event*/) {
    auto queue = std::make_unique<UringQueue>();
    return queue->open(depth) ? std::move(queue) : nullptr;
}

}  // namespace nixl::posix

#else

namespace nixl::posix {

std::unique_ptr<KernelQueue> openUringQueue(unsigned /*depth*/, int /*event*/) {
    return nullptr;
}

}  // namespace nixl::posix

#endif

namespace nixl::posix {

std::unique_ptr<KernelQueue> openSmallQueue(unsigned depth, int event) {
    auto queue = openAioQueue(depth, event);
    return queue != nullptr ? std::move(queue) : openUringQueue(depth, event);
}

}  // namespace nixl::posix
