// CRC32C (Castagnoli), by the processor's own instruction where it has one: for plugins, so that
// each need not bring its own. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nixl/error.h"

namespace nixl {

// The checksum of bytes that follow those whose checksum is `crc` (0: none).
NIXL_API uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept;
// The checksum of two ranges one after the other, the second `size` bytes long.
NIXL_API uint32_t crc32cJoin(uint32_t first, uint32_t second, uint64_t size) noexcept;

}  // namespace nixl
