// See fingerprint.h.
#include "hicache/fingerprint.h"

#include <bit>
#include <cstddef>
#include <cstring>

namespace nixl::hicache {
namespace {

struct State {
    uint64_t v0;
    uint64_t v1;
    uint64_t v2;
    uint64_t v3;

    void round() noexcept {
        v0 += v1;
        v1 = std::rotl(v1, 13) ^ v0;
        v0 = std::rotl(v0, 32);
        v2 += v3;
        v3 = std::rotl(v3, 16) ^ v2;
        v0 += v3;
        v3 = std::rotl(v3, 21) ^ v0;
        v2 += v1;
        v1 = std::rotl(v1, 17) ^ v2;
        v2 = std::rotl(v2, 32);
    }
    void absorb(uint64_t word) noexcept {
        v3 ^= word;
        round();
        round();
        v0 ^= word;
    }
    uint64_t finish() noexcept {
        for (int i = 0; i < 4; ++i) {
            round();
        }
        return v0 ^ v1 ^ v2 ^ v3;
    }
};

}  // namespace

Fingerprint fingerprint(const HashSecret& secret, std::string_view key) noexcept {
    State state{secret.low ^ 0x736f6d6570736575, secret.high ^ 0x646f72616e646f6d ^ 0xee,
                secret.low ^ 0x6c7967656e657261, secret.high ^ 0x7465646279746573};
    size_t at = 0;
    for (; at + 8 <= key.size(); at += 8) {
        uint64_t word = 0;
        std::memcpy(&word, key.data() + at, sizeof(word));
        state.absorb(word);
    }
    uint64_t last = static_cast<uint64_t>(key.size()) << 56;
    for (size_t i = 0; at + i < key.size(); ++i) {
        last |= static_cast<uint64_t>(static_cast<unsigned char>(key[at + i])) << (8 * i);
    }
    state.absorb(last);
    Fingerprint out;
    state.v2 ^= 0xee;
    out.low = state.finish();
    state.v1 ^= 0xdd;
    out.high = state.finish();
    return out;
}

}  // namespace nixl::hicache
