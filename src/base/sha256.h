// SHA-256 (FIPS 180-4) and HMAC (RFC 2104) for the handshake's proofs. Values; no thread rule
// beyond that. Also random bytes from the system.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace nixl::base {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
  public:
    void add(std::string_view bytes);
    // The digest of everything added; the object must not be used after it.
    Digest finish();

  private:
    void block(const uint8_t* data);

    std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> buffer_{};
    uint64_t size_ = 0;
};

Digest sha256(std::string_view bytes);
Digest hmacSha256(std::string_view key, std::string_view message);
// In a time that does not depend on where the two differ.
bool equalSecret(std::string_view a, std::string_view b);

inline std::string_view asView(std::span<const uint8_t> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Fills with random bytes from the system; never fails once the system has booted.
void randomBytes(std::span<uint8_t> out);

}  // namespace nixl::base
