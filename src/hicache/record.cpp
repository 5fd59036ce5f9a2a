// See record.h. Layout: magic u32, size u32, crc u32 (of the rest), type u8, 3 zero bytes, then
// fingerprint, version, offset, length (u64 each), segment, checksum, name length (u32 each), name,
// the tail if there is a name (scope u32, then a CRC32C each of the name and of what stands from
// the type to the name, so that damage to one leaves the key known), zeros up to a multiple of 8.
#include "hicache/record.h"

#include <utility>

#include "base/bytes.h"
#include "base/crc32c.h"

namespace nixl::hicache {
namespace {

constexpr uint32_t kMagic = 0x3148584e;  // "NXH1"
constexpr size_t kCrcFrom = 12;
constexpr size_t kFixed = 68;
constexpr size_t kTail = 12;
constexpr size_t kMinRecord = (kFixed + 7) / 8 * 8;
constexpr size_t kMaxRecord = (kFixed + kMaxKeyBytes + kTail + 7) / 8 * 8;
constexpr uint32_t kLastType = static_cast<uint32_t>(RecordType::GONE);

// The number at `at`, of which the caller knows that it is there.
template <typename T>
T get(const char* at) noexcept {
    return base::ByteReader({at, sizeof(T)}).fixed<T>();
}

uint32_t nameSum(RecordType type, std::string_view name) noexcept {
    return base::crc32c(static_cast<uint32_t>(type), name.data(), name.size());
}

// Records that were written before there was a tail have none.
bool sizeFits(size_t size, size_t name_bytes) noexcept {
    return size == encodedSize(name_bytes) || size == (kFixed + name_bytes + 7) / 8 * 8;
}

}  // namespace

size_t encodedSize(size_t name_bytes) noexcept {
    return (kFixed + name_bytes + (name_bytes == 0 ? 0 : kTail) + 7) / 8 * 8;
}

bool ownerIn(std::string_view name, uint32_t scope, std::string_view& owner) noexcept {
    const size_t suffix = (scope & 0xffff) - 1;  // 0 becomes more than any name has
    const size_t bytes = scope >> 16;
    if (suffix > name.size() || bytes > suffix) {
        return false;
    }
    owner = name.substr(name.size() - suffix, bytes);
    return true;
}

void encode(const Record& record, std::string& out) {
    const size_t size = encodedSize(record.name.size());
    const size_t start = out.size();
    out.reserve(start + size);
    base::ByteWriter writer(std::move(out));
    writer.fixed(kMagic);
    writer.fixed(static_cast<uint32_t>(size));
    writer.fixed<uint32_t>(0);  // the checksum of the rest, once that is there
    writer.fixed<uint32_t>(static_cast<uint8_t>(record.type));
    writer.fixed(record.key.low);
    writer.fixed(record.key.high);
    writer.fixed(record.version);
    writer.fixed(record.offset);
    writer.fixed(record.length);
    writer.fixed(record.segment);
    writer.fixed(record.checksum);
    writer.fixed(static_cast<uint32_t>(record.name.size()));
    if (!record.name.empty()) {
        writer.raw(record.name);
        writer.fixed(record.scope);
        writer.fixed(nameSum(record.type, record.name));
        writer.fixed(base::crc32c(0, writer.bytes().data() + start + kCrcFrom, kFixed - kCrcFrom));
    }
    writer.zeros(start + size - writer.size());
    writer.patch32(start + 8,
                   base::crc32c(0, writer.bytes().data() + start + kCrcFrom, size - kCrcFrom));
    out = writer.take();
}

Decoded decode(std::string_view bytes, Record& record, size_t& size) noexcept {
    if (bytes.size() < kCrcFrom) {
        return Decoded::INCOMPLETE;
    }
    const char* at = bytes.data();
    size = get<uint32_t>(at + 4);
    if (get<uint32_t>(at) != kMagic || size < kFixed || size > kMaxRecord || size % 8 != 0) {
        return Decoded::DAMAGED;
    }
    if (size > bytes.size()) {
        return Decoded::INCOMPLETE;
    }
    if (get<uint32_t>(at + 8) != base::crc32c(0, at + kCrcFrom, size - kCrcFrom)) {
        return Decoded::DAMAGED;
    }
    const auto name_bytes = get<uint32_t>(at + 64);
    const auto type = get<uint32_t>(at + 12);
    if (name_bytes > size - kFixed || type < 1 || type > kLastType) {
        return Decoded::DAMAGED;
    }
    record.type = static_cast<RecordType>(type);
    record.key = {get<uint64_t>(at + 16), get<uint64_t>(at + 24)};
    record.version = get<uint64_t>(at + 32);
    record.offset = get<uint64_t>(at + 40);
    record.length = get<uint64_t>(at + 48);
    record.segment = get<uint32_t>(at + 56);
    record.checksum = get<uint32_t>(at + 60);
    record.name = bytes.substr(kFixed, name_bytes);
    const bool tail = name_bytes != 0 && size == encodedSize(name_bytes);
    record.scope = tail ? get<uint32_t>(at + kFixed + name_bytes) : 0;
    return Decoded::RECORD;
}

bool tornPrefix(std::string_view bytes) noexcept {
    Record record;
    size_t size = 0;
    if (bytes.size() < kMinRecord) {
        return true;
    }
    if (decode(bytes, record, size) != Decoded::INCOMPLETE) {
        return false;
    }
    const auto type = get<uint32_t>(bytes.data() + 12);
    return type >= 1 && type <= kLastType && sizeFits(size, get<uint32_t>(bytes.data() + 64));
}

bool recover(std::string_view bytes, Record& record, size_t& size) noexcept {
    if (bytes.size() < kMinRecord) {
        return false;
    }
    const char* at = bytes.data();
    size = get<uint32_t>(at + 4);
    if (get<uint32_t>(at) != kMagic || size < kMinRecord || size > bytes.size() || size % 8 != 0) {
        size = bytes.size();  // then it is the only one
    }
    // The length of the name may be damaged, too: one of eight that give this size.
    for (size_t rest = 0; rest < 8 && size >= kFixed + kTail + rest; ++rest) {
        const size_t name_bytes = size - kFixed - kTail - rest;
        const char* tail = at + kFixed + name_bytes;
        const std::string_view name = bytes.substr(kFixed, name_bytes);
        record = {.type = RecordType::GONE, .key = {}};
        if (name_bytes != 0 && get<uint32_t>(tail + 4) == nameSum(RecordType::PUT, name)) {
            record.name = name;
            return true;
        }
        if (get<uint32_t>(at + 12) == static_cast<uint32_t>(RecordType::PUT) &&
            get<uint32_t>(tail + 8) == base::crc32c(0, at + kCrcFrom, kFixed - kCrcFrom)) {
            record.key = {get<uint64_t>(at + 16), get<uint64_t>(at + 24)};
            return true;
        }
    }
    return false;
}

size_t findRecord(std::string_view bytes, size_t from) noexcept {
    base::ByteWriter magic;
    magic.fixed(kMagic);
    const std::string_view wanted = magic.bytes();
    for (size_t at = bytes.find(wanted, from); at != std::string_view::npos;
         at = bytes.find(wanted, at + 1)) {
        Record record;
        size_t size = 0;
        if (decode(bytes.substr(at), record, size) == Decoded::RECORD) {
            return at;
        }
    }
    return std::string_view::npos;
}

}  // namespace nixl::hicache
