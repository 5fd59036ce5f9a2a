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
    PUT = 1,          // a block is stored: key, extent, length, checksum of the payload
    ERASE = 2,        // the block of this fingerprint is gone from this writer
    DROP = 3,         // a whole segment is gone
    CLEAR = 4,        // every block up to `version`, of all writers, is gone
    TOUCH = 5,        // the block was read at time `version`
    CLEAR_OWNER = 6,  // every block of the owner `name` up to `version`, of all writers, is gone
    GONE = 7,  // every block of `key` (or of `name`) up to `version`, of all writers, is gone
};

struct Record {
    RecordType type = RecordType::PUT;
    Fingerprint key;
    uint64_t version = 0;  // nanoseconds since 1970, growing within a writer
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t segment = 0;  // number within the writer
    uint32_t checksum = 0;
    std::string_view name = {};  // the key itself (PUT), or as above
    uint32_t scope = 0;          // whose key that is (PUT only), see scopeOf
};

// Where in a key its owner stands: the key ends in `suffix_bytes`, and these begin with the name of
// the owner, which may be empty. 0: not known.
constexpr uint32_t scopeOf(size_t suffix_bytes, size_t owner_bytes) {
    return static_cast<uint32_t>(suffix_bytes + 1) | static_cast<uint32_t>(owner_bytes) << 16;
}
// The owner in a key of that scope; false where none is known.
bool ownerIn(std::string_view name, uint32_t scope, std::string_view& owner) noexcept;

inline Record clearOwner(std::string_view owner, uint64_t version) {
    return {.type = RecordType::CLEAR_OWNER, .key = {}, .version = version, .name = owner};
}

inline constexpr size_t kMaxKeyBytes = 4096;

// The size of the record once encoded; a multiple of 8.
size_t encodedSize(size_t name_bytes) noexcept;
void encode(const Record& record, std::string& out);

enum class Decoded : uint8_t { RECORD, INCOMPLETE, DAMAGED };
// Reads the record at the start of `bytes`; `size` is its encoded size, `record.name` points into
// `bytes`. INCOMPLETE: it may be whole once more bytes arrive.
Decoded decode(std::string_view bytes, Record& record, size_t& size) noexcept;

// Whether `bytes`, the end of a log, may be the beginning of a record that was never finished. What
// is shorter than any record always is: damage makes nothing shorter.
bool tornPrefix(std::string_view bytes) noexcept;

// Which key a damaged PUT was about, where a part of it with a checksum of its own is whole:
// `record` becomes GONE with `key` or `name`, which points into `bytes`. `size` is that of the
// damaged record, at most all of `bytes`.
bool recover(std::string_view bytes, Record& record, size_t& size) noexcept;

// Where the next whole record starts in `bytes`, at or after `from`; npos if there is none.
size_t findRecord(std::string_view bytes, size_t from) noexcept;

}  // namespace nixl::hicache
