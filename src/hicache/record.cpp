// See record.h. Layout: magic u32, size u32, crc u32 (of the rest), type u8, 3 zero bytes, then
// fingerprint, version, offset, length (u64 each), segment, checksum, name length (u32 each), name,
// zeros up to a multiple of 8.
#include "hicache/record.h"

#include <cstring>

#include "base/crc32c.h"

namespace nixl::hicache {
namespace {

constexpr uint32_t kMagic = 0x3148584e;  // "NXH1"
constexpr size_t kCrcFrom = 12;
constexpr size_t kFixed = 68;
constexpr size_t kMaxRecord = (kFixed + kMaxKeyBytes + 7) / 8 * 8;

template <typename T>
void put(char* at, T value) noexcept {
    for (size_t i = 0; i < sizeof(T); ++i) {
        at[i] = static_cast<char>(value >> (8 * i));
    }
}

template <typename T>
T get(const char* at) noexcept {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
        value |= static_cast<T>(static_cast<T>(static_cast<unsigned char>(at[i])) << (8 * i));
    }
    return value;
}

}  // namespace

size_t encodedSize(size_t name_bytes) noexcept {
    return (kFixed + name_bytes + 7) / 8 * 8;
}

void encode(const Record& record, std::string& out) {
    const size_t size = encodedSize(record.name.size());
    const size_t start = out.size();
    out.resize(start + size);
    char* at = out.data() + start;
    put<uint32_t>(at, kMagic);
    put<uint32_t>(at + 4, static_cast<uint32_t>(size));
    put<uint32_t>(at + 12, static_cast<uint8_t>(record.type));
    put<uint64_t>(at + 16, record.key.low);
    put<uint64_t>(at + 24, record.key.high);
    put<uint64_t>(at + 32, record.version);
    put<uint64_t>(at + 40, record.offset);
    put<uint64_t>(at + 48, record.length);
    put<uint32_t>(at + 56, record.segment);
    put<uint32_t>(at + 60, record.checksum);
    put<uint32_t>(at + 64, static_cast<uint32_t>(record.name.size()));
    if (!record.name.empty()) {
        std::memcpy(at + kFixed, record.name.data(), record.name.size());
    }
    put<uint32_t>(at + 8, base::crc32c(0, at + kCrcFrom, size - kCrcFrom));
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
    if (name_bytes > size - kFixed || type < 1 || type > 5) {
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
    return Decoded::RECORD;
}

size_t findRecord(std::string_view bytes, size_t from) noexcept {
    char magic[4];
    put<uint32_t>(magic, kMagic);
    const std::string_view wanted(magic, sizeof(magic));
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
