// The pool of aligned buffers; see bounce.h.
#include "bounce.h"

#include <string>

#include <sys/mman.h>

#include "cuda.h"

namespace nixl::posix {

BouncePool::~BouncePool() {
    std::string reason;
    for (const auto& bounce : all_) {
        if (bounce->pinned) {
            Cuda::get(reason)->unpin(bounce->data);
        }
        munmap(bounce->data, bytes_);
    }
}

Bounce* BouncePool::take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
        if (all_.size() == limit_) {
            return nullptr;
        }
        void* data =
            mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) {
            return nullptr;
        }
        all_.push_back(std::make_unique<Bounce>(Bounce{data}));
        free_.push_back(all_.back().get());
    }
    Bounce* bounce = free_.back();
    free_.pop_back();
    ++inUse_;
    return bounce;
}

void BouncePool::give(Bounce* bounce) {
    const std::lock_guard lock(mutex_);
    free_.push_back(bounce);
    --inUse_;
}

}  // namespace nixl::posix
