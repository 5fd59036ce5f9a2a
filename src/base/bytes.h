// Little-endian byte writer and bounds-checked reader for everything that leaves the process.
// Values; not thread-safe.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace nixl::base {

class ByteWriter {
  public:
    ByteWriter() = default;
    // Goes on behind `begun`.
    explicit ByteWriter(std::string&& begun) : bytes_(std::move(begun)) {}

    template <std::unsigned_integral T>
    void fixed(T value) {
        char bytes[sizeof(T)];
        for (size_t i = 0; i < sizeof(T); ++i) {
            bytes[i] = static_cast<char>(value >> (8 * i));
        }
        bytes_.append(bytes, sizeof(T));
    }
    void zeros(size_t count) { bytes_.append(count, '\0'); }
    // 7 bits a byte, lowest first.
    void varint(uint64_t value) {
        while (value >= 0x80) {
            bytes_.push_back(static_cast<char>(value | 0x80));
            value >>= 7;
        }
        bytes_.push_back(static_cast<char>(value));
    }
    // Small magnitudes of either sign stay short.
    void zigzag(int64_t value) {
        varint((static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63));
    }
    void raw(std::string_view bytes) { bytes_.append(bytes); }
    // A length and the bytes.
    void text(std::string_view bytes) {
        varint(bytes.size());
        raw(bytes);
    }
    void patch32(size_t at, uint32_t value) {
        for (size_t i = 0; i < sizeof(value); ++i) {
            bytes_[at + i] = static_cast<char>(value >> (8 * i));
        }
    }
    size_t size() const { return bytes_.size(); }
    const std::string& bytes() const { return bytes_; }
    std::string take() { return std::move(bytes_); }
    void clear() { bytes_.clear(); }  // keeps its memory

  private:
    std::string bytes_;
};

// Reads what ByteWriter wrote. After the first read past the end (or malformed number) ok() is
// false, every read gives zero or empty, and nothing is read any more.
class ByteReader {
  public:
    explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

    template <std::unsigned_integral T>
    T fixed() {
        T value = 0;
        if (!need(sizeof(T))) {
            return 0;
        }
        for (size_t i = 0; i < sizeof(T); ++i) {
            value |= static_cast<T>(static_cast<T>(static_cast<uint8_t>(rest_[i])) << (8 * i));
        }
        rest_.remove_prefix(sizeof(T));
        return value;
    }
    uint64_t varint() {
        uint64_t value = 0;
        for (unsigned shift = 0; shift < 64; shift += 7) {
            if (!need(1)) {
                return 0;
            }
            const auto byte = static_cast<uint8_t>(rest_.front());
            rest_.remove_prefix(1);
            if (shift == 63 && byte > 1) {
                break;
            }
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) {
                return value;
            }
        }
        fail();
        return 0;
    }
    int64_t zigzag() {
        const uint64_t value = varint();
        return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
    }
    std::string_view raw(uint64_t size) {
        if (!need(size)) {
            return {};
        }
        const std::string_view out = rest_.substr(0, size);
        rest_.remove_prefix(size);
        return out;
    }
    std::string_view text() { return raw(varint()); }

    bool ok() const { return ok_; }
    bool atEnd() const { return rest_.empty(); }
    size_t left() const { return rest_.size(); }
    void fail() {
        ok_ = false;
        rest_ = {};
    }

  private:
    bool need(uint64_t size) {
        if (size > rest_.size()) {
            fail();
            return false;
        }
        return ok_;
    }

    std::string_view rest_;
    bool ok_ = true;
};

}  // namespace nixl::base
