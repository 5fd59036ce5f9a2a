// Records of a writer's log: how one is laid out, read back, and found again behind damage.
// Little-endian, 8-byte aligned, each with its own CRC32C. Values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "hicache/fingerprint.h"

namespace nixl::hicache {

enum class RecordType : uint8_t {
    PUT = 1,    // a block is stored: key, place, length, checksum of the payload
    ERASE = 2,  // the block of this fingerprint is gone from this writer
    DROP = 3,   // a whole segment is gone
    CLEAR = 4,  // every block up to `version`, of all writers, is gone
    TOUCH = 5,  // the block was read at time `version`
};

struct Record {
    RecordType type = RecordType::PUT;
    Fingerprint key;
    uint64_t version = 0;  // nanoseconds since 1970, growing within a writer
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t segment = 0;  // number within the writer
    uint32_t checksum = 0;
    std::string_view name = {};  // the key itself (PUT only)
};

inline constexpr size_t kMaxKeyBytes = 4096;

// The size of the record once encoded; a multiple of 8.
size_t encodedSize(size_t name_bytes) noexcept;
void encode(const Record& record, std::string& out);

enum class Decoded : uint8_t { RECORD, INCOMPLETE, DAMAGED };
// Reads the record at the start of `bytes`; `size` is its encoded size, `record.name` points into
// `bytes`. INCOMPLETE: it may be whole once more bytes arrive.
Decoded decode(std::string_view bytes, Record& record, size_t& size) noexcept;

// Where the next whole record starts in `bytes`, at or after `from`; npos if there is none.
size_t findRecord(std::string_view bytes, size_t from) noexcept;

}  // namespace nixl::hicache
