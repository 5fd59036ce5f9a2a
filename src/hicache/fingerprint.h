// 128-bit keyed fingerprints of keys (SipHash-2-4-128): what the index stores instead of the key.
// The secret is per directory, so nobody can make two keys collide. Values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nixl::hicache {

struct Fingerprint {
    uint64_t low = 0;
    uint64_t high = 0;
    bool operator==(const Fingerprint&) const = default;
};

struct FingerprintHash {
    size_t operator()(const Fingerprint& key) const noexcept { return key.low; }
};

struct HashSecret {
    uint64_t low = 0;
    uint64_t high = 0;
};

Fingerprint fingerprint(const HashSecret& secret, std::string_view key) noexcept;

}  // namespace nixl::hicache
