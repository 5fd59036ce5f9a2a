// See nixl/user_memory.h.
#include "nixl/user_memory.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include <unistd.h>

namespace nixl {

namespace {

enum class Copy : uint8_t { TO_USER, FROM_USER };

bool copy(std::span<const iovec> user, char* buffer, size_t size, Copy direction) {
    // The buffer is what the kernel takes for the other process' memory, and pins: user memory may
    // be of a kind that cannot be pinned (mapped from a device).
    const iovec own{buffer, size};
    const auto call = direction == Copy::TO_USER ? process_vm_readv : process_vm_writev;
    const ssize_t done = call(getpid(), user.data(), user.size(), &own, 1, 0);
    if (done == static_cast<ssize_t>(size)) {
        return true;
    }
    if (done >= 0 || errno == EFAULT) {
        return false;
    }
    // Forbidden by a sandbox: then as everybody copies.
    for (const iovec& vector : user) {
        const size_t step = std::min(size, vector.iov_len);
        if (direction == Copy::TO_USER) {
            std::memcpy(vector.iov_base, buffer, step);
        } else {
            std::memcpy(buffer, vector.iov_base, step);
        }
        buffer += step;
        size -= step;
    }
    return true;
}

}  // namespace

bool copyFromUser(void* to, std::span<const iovec> user, size_t size) noexcept {
    return copy(user, static_cast<char*>(to), size, Copy::FROM_USER);
}

bool copyToUser(std::span<const iovec> user, const void* from, size_t size) noexcept {
    // Only read from.
    return copy(user, static_cast<char*>(const_cast<void*>(from)), size, Copy::TO_USER);
}

}  // namespace nixl
