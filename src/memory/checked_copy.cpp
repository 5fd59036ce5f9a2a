// See checked_copy.h and nixl/user_memory.h.
#include "memory/checked_copy.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <unistd.h>

#include "nixl/user_memory.h"

namespace nixl::memory {

bool copyChecked(const iovec* vectors, size_t count, char* buffer, size_t size, Copy direction) {
    // The buffer is what the kernel takes for the other process' memory, and pins: user memory may
    // be of a kind that cannot be pinned (mapped from a device).
    const iovec own{buffer, size};
    const auto call = direction == Copy::TO_VECTORS ? process_vm_readv : process_vm_writev;
    const ssize_t done = call(getpid(), vectors, count, &own, 1, 0);
    if (done == static_cast<ssize_t>(size)) {
        return true;
    }
    if (done >= 0 || errno == EFAULT) {
        return false;
    }
    // Forbidden by a sandbox: then as everybody copies.
    for (size_t i = 0; i < count && size > 0; ++i) {
        const size_t step = std::min(size, vectors[i].iov_len);
        if (direction == Copy::TO_VECTORS) {
            std::memcpy(vectors[i].iov_base, buffer, step);
        } else {
            std::memcpy(buffer, vectors[i].iov_base, step);
        }
        buffer += step;
        size -= step;
    }
    return true;
}

}  // namespace nixl::memory

namespace nixl {

bool copyFromUser(void* to, std::span<const iovec> user, size_t size) noexcept {
    return memory::copyChecked(user.data(), user.size(), static_cast<char*>(to), size,
                               memory::Copy::FROM_VECTORS);
}

bool copyToUser(std::span<const iovec> user, const void* from, size_t size) noexcept {
    // Only read from.
    char* const bytes = static_cast<char*>(const_cast<void*>(from));
    return memory::copyChecked(user.data(), user.size(), bytes, size, memory::Copy::TO_VECTORS);
}

}  // namespace nixl
