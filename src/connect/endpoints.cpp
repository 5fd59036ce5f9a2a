// See endpoints.h.
#include "connect/endpoints.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/sha256.h"

namespace nixl::peer {

std::string Endpoints::encode() const {
    base::ByteWriter out;
    out.fixed<uint8_t>(1);
    out.raw(base::asView(bootId));
    out.fixed(uid);
    out.text(abstract);
    out.text(path);
    out.fixed(port);
    out.varint(addresses.size());
    for (const std::string& address : addresses) {
        out.text(address);
    }
    return out.take();
}

Result<Endpoints> Endpoints::decode(std::string_view bytes) {
    base::ByteReader in(bytes);
    Endpoints endpoints;
    const auto version = in.fixed<uint8_t>();
    const std::string_view boot = in.raw(endpoints.bootId.size());
    std::copy(boot.begin(), boot.end(), endpoints.bootId.begin());
    endpoints.uid = in.fixed<uint32_t>();
    endpoints.abstract = std::string(in.text());
    endpoints.path = std::string(in.text());
    endpoints.port = in.fixed<uint16_t>();
    const uint64_t count = in.varint();
    bool good = in.ok() && version == 1 && count <= kMaxAddresses &&
                endpoints.abstract.size() <= kMaxPath - 1 && endpoints.path.size() <= kMaxPath &&
                endpoints.path.find('\0') == std::string::npos;
    for (uint64_t i = 0; good && i < count; ++i) {
        endpoints.addresses.emplace_back(in.text());
        const size_t size = endpoints.addresses.back().size();
        good = in.ok() && (size == 4 || size == 16);
    }
    if (!good || !in.atEnd()) {
        return Status::invalidParam("connection info of " + std::to_string(bytes.size()) +
                                    " bytes is malformed or of another version");
    }
    return endpoints;
}

std::vector<base::Target> targetsOf(const Endpoints& there, const Key& own_boot_id) {
    std::vector<base::Target> targets;
    const bool same_host = there.bootId == own_boot_id && there.bootId != Key{};
    if (same_host && !there.abstract.empty()) {
        targets.push_back(base::unixTarget(there.abstract, true));
    }
    if (same_host && !there.path.empty()) {
        targets.push_back(base::unixTarget(there.path, false));
    }
    if (there.port != 0) {
        for (const std::string& address : there.addresses) {
            // Another host's loopback is our own.
            if (same_host || !base::isLoopback(address)) {
                targets.push_back(base::tcpTarget(address, there.port));
            }
        }
    }
    return targets;
}

}  // namespace nixl::peer
