// See base64.h.
#include "exchange_etcd/base64.h"

#include <array>
#include <cstdint>

namespace nixl::exchange_etcd {
namespace {

constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr int8_t kNone = -1;

constexpr std::array<int8_t, 256> makeReverse() {
    std::array<int8_t, 256> reverse{};
    reverse.fill(kNone);
    for (size_t i = 0; i < kAlphabet.size(); ++i) {
        reverse[static_cast<uint8_t>(kAlphabet[i])] = static_cast<int8_t>(i);
    }
    return reverse;
}
constexpr std::array<int8_t, 256> kReverse = makeReverse();

uint32_t byteAt(std::string_view bytes, size_t at) {
    return at < bytes.size() ? static_cast<uint8_t>(bytes[at]) : 0U;
}

}  // namespace

std::string toBase64(std::string_view bytes) {
    std::string text;
    text.reserve((bytes.size() + 2) / 3 * 4);
    for (size_t at = 0; at < bytes.size(); at += 3) {
        const uint32_t word =
            byteAt(bytes, at) << 16 | byteAt(bytes, at + 1) << 8 | byteAt(bytes, at + 2);
        text += kAlphabet[word >> 18];
        text += kAlphabet[word >> 12 & 63];
        text += at + 1 < bytes.size() ? kAlphabet[word >> 6 & 63] : '=';
        text += at + 2 < bytes.size() ? kAlphabet[word & 63] : '=';
    }
    return text;
}

std::optional<std::string> fromBase64(std::string_view text) {
    if (text.size() % 4 != 0) {
        return std::nullopt;
    }
    size_t padding = 0;
    while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') {
        ++padding;
    }
    std::string bytes;
    bytes.reserve(text.size() / 4 * 3);
    uint32_t word = 0;
    for (size_t at = 0; at < text.size() - padding; ++at) {
        const int8_t value = kReverse[static_cast<uint8_t>(text[at])];
        if (value == kNone) {
            return std::nullopt;
        }
        word = word << 6 | static_cast<uint32_t>(value);
        if (at % 4 != 0) {
            const unsigned left = 6 - 2 * (at % 4);
            bytes += static_cast<char>(word >> left & 255);
        }
    }
    return bytes;
}

}  // namespace nixl::exchange_etcd
