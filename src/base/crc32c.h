// CRC32C (Castagnoli), as in iSCSI and ext4: hardware instructions where there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nixl::base {

// Continues `crc` (0 for the start) over `size` bytes.
uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept;
inline uint32_t crc32c(std::string_view bytes) noexcept {
    return crc32c(0, bytes.data(), bytes.size());
}

}  // namespace nixl::base
