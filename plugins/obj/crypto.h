// The few digests that S3 wants, over OpenSSL, and how they are written down. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace nixl::obj {

// SHA-256 of bytes given in pieces.
class Sha256 {
  public:
    Sha256();
    ~Sha256();
    Sha256(const Sha256&) = delete;
    Sha256& operator=(const Sha256&) = delete;

    void add(const void* data, size_t size);
    std::string finish();  // 32 bytes; once

  private:
    struct State;
    std::unique_ptr<State> state_;
};

std::string sha256(std::string_view bytes);                            // 32 bytes
std::string hmacSha256(std::string_view key, std::string_view bytes);  // 32 bytes
std::string md5(std::string_view bytes);  // 16 bytes; empty where forbidden
std::string hex(std::string_view bytes);
std::string base64(std::string_view bytes);
std::string base64(uint32_t crc);  // as S3 writes a CRC32C: big-endian

// Percent-encodes as SigV4 wants it; `slash` stays where `keep_slash`.
std::string uriEncode(std::string_view text, bool keep_slash);
// Fills the bytes of a secret with zeros before they are given back.
void wipe(std::string& secret) noexcept;

}  // namespace nixl::obj
