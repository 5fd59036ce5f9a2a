// See sha256.h.
#include "base/sha256.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <exception>

#include <sys/random.h>

namespace nixl::base {

namespace {

constexpr std::array<uint32_t, 64> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

}  // namespace

void Sha256::block(const uint8_t* data) {
    std::array<uint32_t, 64> w{};
    for (size_t i = 0; i < 16; ++i) {
        w[i] = static_cast<uint32_t>(data[4 * i]) << 24 |
               static_cast<uint32_t>(data[4 * i + 1]) << 16 |
               static_cast<uint32_t>(data[4 * i + 2]) << 8 | data[4 * i + 3];
    }
    for (size_t i = 16; i < 64; ++i) {
        const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
        const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (size_t i = 0; i < 64; ++i) {
        const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
        const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
        const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
        const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    const std::array<uint32_t, 8> add = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; ++i) {
        state_[i] += add[i];
    }
}

void Sha256::add(std::string_view bytes) {
    size_t used = size_ % 64;
    size_ += bytes.size();
    while (!bytes.empty()) {
        const size_t n = std::min(bytes.size(), 64 - used);
        std::memcpy(buffer_.data() + used, bytes.data(), n);
        bytes.remove_prefix(n);
        used += n;
        if (used == 64) {
            block(buffer_.data());
            used = 0;
        }
    }
}

Digest Sha256::finish() {
    const uint64_t bits = size_ * 8;
    add(std::string_view("\x80", 1));
    const size_t used = size_ % 64;
    const std::array<char, 64> zeros{};
    add({zeros.data(), (used <= 56 ? 56 : 120) - used});
    std::array<char, 8> length{};
    for (size_t i = 0; i < 8; ++i) {
        length[i] = static_cast<char>(bits >> (56 - 8 * i));
    }
    add({length.data(), length.size()});
    Digest digest{};
    for (size_t i = 0; i < 32; ++i) {
        digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
    }
    return digest;
}

Digest sha256(std::string_view bytes) {
    Sha256 hash;
    hash.add(bytes);
    return hash.finish();
}

Digest hmacSha256(std::string_view key, std::string_view message) {
    std::array<uint8_t, 64> pad{};
    if (key.size() > pad.size()) {
        const Digest shorter = sha256(key);
        std::copy(shorter.begin(), shorter.end(), pad.begin());
    } else {
        std::copy(key.begin(), key.end(), pad.begin());
    }
    for (uint8_t& byte : pad) {
        byte ^= 0x36;
    }
    Sha256 inner;
    inner.add(asView(pad));
    inner.add(message);
    for (uint8_t& byte : pad) {
        byte ^= 0x36 ^ 0x5c;
    }
    Sha256 outer;
    outer.add(asView(pad));
    outer.add(asView(inner.finish()));
    return outer.finish();
}

bool equalSecret(std::string_view a, std::string_view b) {
    if (a.size() != b.size()) {
        return false;
    }
    volatile unsigned difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference = difference | static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^
                                                        static_cast<unsigned char>(b[i]));
    }
    return difference == 0;
}

void randomBytes(std::span<uint8_t> out) {
    while (!out.empty()) {
        const ssize_t got = getrandom(out.data(), out.size(), 0);
        if (got > 0) {
            out = out.subspan(static_cast<size_t>(got));
        } else if (errno != EINTR) {
            std::terminate();  // no source of secrets: nothing here could be safe
        }
    }
}

}  // namespace nixl::base
