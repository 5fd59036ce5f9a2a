// Copying to and from user memory that may not be there. No state; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include <sys/uio.h>

namespace nixl::memory {

// Copies between `size` bytes at `buffer` and user memory. False where the kernel finds that the
// memory is not there: its owner may have unmapped it, and must not take us down with it.
enum class Copy : uint8_t { TO_VECTORS, FROM_VECTORS };
bool copyChecked(const iovec* vectors, size_t count, char* buffer, size_t size, Copy direction);

}  // namespace nixl::memory
