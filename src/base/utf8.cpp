// See utf8.h.
#include "base/utf8.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace nixl::base {

namespace {

// The length of the character that begins with this byte, 0 where none does, and the range of the
// byte after it: that is where long forms, surrogates and numbers past the last one show.
struct Lead {
    size_t size = 0;
    uint8_t low = 0x80;
    uint8_t high = 0xBF;
};

Lead leadOf(uint8_t byte) {
    if (byte < 0x80) {
        return {1};
    }
    if (byte < 0xC2 || byte > 0xF4) {
        return {};
    }
    switch (byte) {
        case 0xE0:
            return {3, 0xA0, 0xBF};
        case 0xED:
            return {3, 0x80, 0x9F};
        case 0xF0:
            return {4, 0x90, 0xBF};
        case 0xF4:
            return {4, 0x80, 0x8F};
        default:
            return {byte < 0xE0 ? size_t{2} : byte < 0xF0 ? size_t{3} : size_t{4}};
    }
}

}  // namespace

bool isUtf8(std::string_view text) {
    while (!text.empty()) {
        const Lead lead = leadOf(static_cast<uint8_t>(text[0]));
        if (lead.size == 0 || lead.size > text.size()) {
            return false;
        }
        if (lead.size > 1) {
            const auto second = static_cast<uint8_t>(text[1]);
            const std::string_view rest = text.substr(2, lead.size - 2);
            if (second < lead.low || second > lead.high ||
                !std::all_of(rest.begin(), rest.end(),
                             [](char one) { return (static_cast<uint8_t>(one) & 0xC0) == 0x80; })) {
                return false;
            }
        }
        text.remove_prefix(lead.size);
    }
    return true;
}

}  // namespace nixl::base
