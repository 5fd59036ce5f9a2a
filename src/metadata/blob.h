// The metadata blob: what a peer needs to reach this agent's memory, as bytes that travel by any
// means. Reading trusts nothing: magic, version, checksum, lengths and limits are checked, unknown
// sections skipped. Values; not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

#include "memory/remote_regions.h"

namespace nixl::metadata {

inline constexpr uint16_t kBlobVersion = 1;
// More is refused, so that a small blob cannot take much memory.
inline constexpr uint64_t kMaxRegions = 1'000'000;
inline constexpr uint64_t kMaxName = 1024;    // bytes of an agent's name
inline constexpr uint64_t kMaxBackends = 32;  // backends of one agent

using Key = std::array<uint8_t, 16>;

// What one backend wrote for its own kind: opaque here.
struct BackendSection {
    std::string name;
    std::string connection;
};

// The remote key a backend exported for one region: opaque here.
struct RegionKey {
    uint32_t backend = 0;  // index into Blob::backends
    uint64_t region = 0;   // region id
    std::string key;
};

struct Blob {
    std::string name;
    Key incarnation{};
    Key grant{};             // the capability; see docs/protocol.md
    bool connection = true;  // carries sessions and backends' connection info
    bool partial = false;    // adds to what is known of this incarnation
    std::string session;     // the session engine's endpoints, opaque here
    std::vector<BackendSection> backends;
    std::vector<memory::RemoteRegion> regions;  // by type, device, address
    std::vector<RegionKey> keys;
    // Of agents that publish their metadata: it grows with every change; 0: unknown. A partial blob
    // with one tells all that changed since `base`, removed regions too.
    uint64_t version = 0;
    uint64_t base = 0;
    std::vector<uint64_t> removed;  // region ids
};

std::string encodeBlob(const Blob& blob);
Result<Blob> decodeBlob(std::string_view bytes);

}  // namespace nixl::metadata
