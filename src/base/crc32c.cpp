// See crc32c.h. Three interleaved streams hide the latency of the instruction on x86-64.
#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace nixl::base {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected 0x1edc6f41

constexpr std::array<std::array<uint32_t, 256>, 8> makeTables() {
    std::array<std::array<uint32_t, 256>, 8> tables{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
        }
        tables[0][i] = crc;
    }
    for (size_t t = 1; t < 8; ++t) {
        for (size_t i = 0; i < 256; ++i) {
            tables[t][i] = (tables[t - 1][i] >> 8) ^ tables[0][tables[t - 1][i] & 0xff];
        }
    }
    return tables;
}
constexpr auto kTables = makeTables();

uint64_t load64(const unsigned char* data) {
    uint64_t word = 0;
    std::memcpy(&word, data, sizeof(word));
    return word;
}

uint32_t portable(uint32_t crc, const unsigned char* data, size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        const uint64_t word = load64(data) ^ crc;
        crc = 0;
        for (size_t i = 0; i < 8; ++i) {
            crc ^= kTables[7 - i][(word >> (8 * i)) & 0xff];
        }
    }
    for (; size > 0; ++data, --size) {
        crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 0xff];
    }
    return crc;
}

#if defined(__x86_64__) || defined(__aarch64__)

// Bytes per stream of one round, and the operator that appends that many zero bytes to a CRC.
constexpr size_t kBlock = 1024;

constexpr uint32_t multiply(const std::array<uint32_t, 32>& matrix, uint32_t vector) {
    uint32_t sum = 0;
    for (size_t i = 0; i < 32; ++i) {
        sum ^= ((vector >> i) & 1) != 0 ? matrix[i] : 0;
    }
    return sum;
}

constexpr std::array<std::array<uint32_t, 256>, 4> makeShift(size_t zero_bytes) {
    std::array<uint32_t, 32> one_bit{};
    one_bit[0] = kPolynomial;
    for (size_t i = 1; i < 32; ++i) {
        one_bit[i] = 1U << (i - 1);
    }
    // Square the one-bit operator until it stands for zero_bytes * 8 bits (a power of two).
    std::array<uint32_t, 32> power = one_bit;
    for (size_t bits = 1; bits < zero_bytes * 8; bits *= 2) {
        std::array<uint32_t, 32> square{};
        for (size_t i = 0; i < 32; ++i) {
            square[i] = multiply(power, power[i]);
        }
        power = square;
    }
    std::array<std::array<uint32_t, 256>, 4> tables{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        for (size_t t = 0; t < 4; ++t) {
            tables[t][byte] = multiply(power, byte << (8 * t));
        }
    }
    return tables;
}
constexpr auto kShiftBlock = makeShift(kBlock);

uint32_t shiftBlock(uint32_t crc) {
    return kShiftBlock[0][crc & 0xff] ^ kShiftBlock[1][(crc >> 8) & 0xff] ^
           kShiftBlock[2][(crc >> 16) & 0xff] ^ kShiftBlock[3][crc >> 24];
}

#if defined(__x86_64__)
#define NIXL_CRC_TARGET __attribute__((target("sse4.2")))
#define NIXL_CRC64(crc, word) static_cast<uint32_t>(_mm_crc32_u64(crc, word))
#define NIXL_CRC8(crc, byte) _mm_crc32_u8(crc, byte)
bool haveHardware() {
    return __builtin_cpu_supports("sse4.2") != 0;
}
#else
#define NIXL_CRC_TARGET __attribute__((target("+crc")))
#define NIXL_CRC64(crc, word) __crc32cd(crc, word)
#define NIXL_CRC8(crc, byte) __crc32cb(crc, byte)
bool haveHardware() {
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}
#endif

NIXL_CRC_TARGET uint32_t hardware(uint32_t crc, const unsigned char* data, size_t size) {
    while (size >= 3 * kBlock) {
        uint32_t second = 0;
        uint32_t third = 0;
        for (size_t i = 0; i < kBlock; i += 8) {
            crc = NIXL_CRC64(crc, load64(data + i));
            second = NIXL_CRC64(second, load64(data + kBlock + i));
            third = NIXL_CRC64(third, load64(data + 2 * kBlock + i));
        }
        crc = shiftBlock(shiftBlock(crc) ^ second) ^ third;
        data += 3 * kBlock;
        size -= 3 * kBlock;
    }
    for (; size >= 8; data += 8, size -= 8) {
        crc = NIXL_CRC64(crc, load64(data));
    }
    for (; size > 0; ++data, --size) {
        crc = NIXL_CRC8(crc, *data);
    }
    return crc;
}
#endif

}  // namespace

uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept {
    const auto* bytes = static_cast<const unsigned char*>(data);
#if defined(__x86_64__) || defined(__aarch64__)
    static const bool kHardware = haveHardware();
    if (kHardware) {
        return ~hardware(~crc, bytes, size);
    }
#endif
    return ~portable(~crc, bytes, size);
}

}  // namespace nixl::base
