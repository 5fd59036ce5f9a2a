// CRC32C of many blocks, each gathered from several parts, on as many threads as pay off.
// Values; any thread. The memory must be readable by this process.
#pragma once

#include <cstdint>
#include <span>

#include "hicache/batch.h"

namespace nixl::hicache {

// out[i] is the checksum of parts[i * per_block … (i + 1) * per_block), in order.
void checksumBlocks(std::span<const Part> parts, size_t per_block, std::span<uint32_t> out);

}  // namespace nixl::hicache
