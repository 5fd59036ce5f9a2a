// Copying to and from memory of users, which may not be there any more (unmapped, or a file mapped
// and then cut short) or may not be written: an error instead of the end of the process. For
// plugins that copy themselves. Any thread.
#pragma once

#include <cstddef>
#include <span>

#include <sys/uio.h>

#include "nixl/error.h"

namespace nixl {

// Copies the first `size` bytes of `user`, of at most 1,024 ranges, to `to`, or there from `from`.
// False where the kernel finds that it cannot: some of the bytes may have been copied. The kernel's
// call costs about a microsecond more than memcpy. Where a sandbox forbids it, memcpy copies.
NIXL_API bool copyFromUser(void* to, std::span<const iovec> user, size_t size) noexcept;
NIXL_API bool copyToUser(std::span<const iovec> user, const void* from, size_t size) noexcept;

}  // namespace nixl
