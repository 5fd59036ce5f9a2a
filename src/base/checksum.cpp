// See nixl/checksum.h.
#include "nixl/checksum.h"

#include <array>

#include "base/crc32c.h"

namespace nixl {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

// A linear operator on checksums: one column for each bit.
using Operator = std::array<uint32_t, 32>;

uint32_t timesOperator(const Operator& op, uint32_t crc) {
    uint32_t sum = 0;
    for (size_t i = 0; crc != 0; ++i, crc >>= 1) {
        sum ^= (crc & 1) != 0 ? op[i] : 0;
    }
    return sum;
}

Operator square(const Operator& op) {
    Operator twice{};
    for (size_t i = 0; i < op.size(); ++i) {
        twice[i] = timesOperator(op, op[i]);
    }
    return twice;
}

// Appends one byte of zeros.
Operator zeroByte() {
    Operator bit{kPolynomial};
    for (size_t i = 1; i < bit.size(); ++i) {
        bit[i] = 1U << (i - 1);
    }
    return square(square(square(bit)));
}

}  // namespace

uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept {
    return base::crc32c(crc, data, size);
}

uint32_t crc32cJoin(uint32_t first, uint32_t second, uint64_t size) noexcept {
    Operator zeros = zeroByte();
    for (; size != 0; size >>= 1, zeros = square(zeros)) {
        first = (size & 1) != 0 ? timesOperator(zeros, first) : first;
    }
    return first ^ second;
}

}  // namespace nixl
