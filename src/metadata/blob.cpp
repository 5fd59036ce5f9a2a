// See blob.h. Layout: "NIXLMD", version (u16), sections {tag u8, length varint, bytes}, CRC32C of
// everything before it. Numbers are little-endian or varints (base/bytes.h).
#include "metadata/blob.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/utf8.h"

namespace nixl::metadata {
namespace {

using memory::RemoteRegion;

constexpr std::string_view kMagic = "NIXLMD";

enum class Tag : uint8_t {
    IDENTITY = 1,
    GRANT = 2,
    SESSION = 3,
    BACKEND = 4,
    REGIONS = 5,
    KEYS = 6,
    VERSION = 7
};

void section(base::ByteWriter& out, Tag tag, const base::ByteWriter& body) {
    out.fixed(static_cast<uint8_t>(tag));
    out.text(body.bytes());
}

std::string_view view(const Key& key) {
    return {reinterpret_cast<const char*>(key.data()), key.size()};
}

bool readKey(base::ByteReader& in, Key& key) {
    const std::string_view bytes = in.raw(key.size());
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(key.data()));
    return in.ok();
}

// How many regions from `first` on differ only by equal steps of address and id.
size_t regionRun(const std::vector<RemoteRegion>& regions, size_t first) {
    const RemoteRegion& head = regions[first];
    size_t next = first + 1;
    while (next < regions.size()) {
        const RemoteRegion& before = regions[next - 1];
        const RemoteRegion& now = regions[next];
        if (now.type != head.type || now.deviceId != head.deviceId || now.size != head.size ||
            now.generation != head.generation || now.backends != head.backends ||
            now.address - before.address != regions[first + 1].address - head.address ||
            now.id - before.id != regions[first + 1].id - head.id) {
            break;
        }
        ++next;
    }
    return next - first < 3 ? 1 : next - first;
}

// Groups of one type, device, backends: head, then runs as differences from the one before.
void writeRegions(base::ByteWriter& out, const std::vector<RemoteRegion>& regions) {
    for (size_t at = 0; at < regions.size();) {
        const RemoteRegion& head = regions[at];
        size_t end = at;
        while (end < regions.size() && regions[end].type == head.type &&
               regions[end].deviceId == head.deviceId && regions[end].backends == head.backends) {
            ++end;
        }
        out.fixed(static_cast<uint8_t>(head.type));
        out.varint(head.deviceId);
        out.varint(head.backends);
        base::ByteWriter runs;
        uint64_t entries = 0;
        RemoteRegion last;
        while (at < end) {
            const size_t count = std::min(regionRun(regions, at), end - at);
            const RemoteRegion& first = regions[at];
            runs.zigzag(static_cast<int64_t>(first.address - last.address));
            runs.varint(first.size);
            runs.zigzag(static_cast<int64_t>(first.id - last.id));
            // The count shares a number with "same generation as before".
            const bool same = first.generation == last.generation;
            runs.varint(count << 1 | (same ? 0 : 1));
            if (!same) {
                runs.varint(first.generation);
            }
            if (count > 1) {
                runs.zigzag(static_cast<int64_t>(regions[at + 1].address - first.address));
                runs.zigzag(static_cast<int64_t>(regions[at + 1].id - first.id));
            }
            at += count;
            last = regions[at - 1];
            ++entries;
        }
        out.varint(entries);
        out.raw(runs.bytes());
    }
}

Status badRegions(const char* why) {
    return Status::invalidParam(std::string("agent metadata: the region table ") + why);
}

Status readRun(base::ByteReader& in, RemoteRegion& last, std::vector<RemoteRegion>& regions) {
    RemoteRegion region = last;
    region.address = last.address + static_cast<uint64_t>(in.zigzag());
    region.size = in.varint();
    region.id = last.id + static_cast<uint64_t>(in.zigzag());
    const uint64_t packed = in.varint();
    const uint64_t count = packed >> 1;
    if ((packed & 1) != 0) {
        region.generation = static_cast<uint32_t>(in.varint());
    }
    uint64_t stride = 0;
    uint64_t id_step = 0;
    if (count > 1) {
        stride = static_cast<uint64_t>(in.zigzag());
        id_step = static_cast<uint64_t>(in.zigzag());
    }
    if (!in.ok() || count == 0) {
        return badRegions("ends too early");
    }
    if (count > kMaxRegions - regions.size()) {
        return badRegions("has more than 1000000 regions");
    }
    for (uint64_t i = 0; i < count; ++i) {
        if (region.address + region.size < region.address) {
            return badRegions("has a range that passes the end of addresses");
        }
        regions.push_back(region);
        last = region;
        region.address += stride;
        region.id += id_step;
    }
    return {};
}

Status readRegions(std::string_view body, std::vector<RemoteRegion>& regions) {
    base::ByteReader in(body);
    while (in.ok() && !in.atEnd()) {
        RemoteRegion last;
        const auto type = in.fixed<uint8_t>();
        if (type > static_cast<uint8_t>(MemType::FILE)) {
            return badRegions("has an unknown memory type");
        }
        last.type = static_cast<MemType>(type);
        last.deviceId = in.varint();
        last.backends = static_cast<uint32_t>(in.varint());
        const uint64_t entries = in.varint();
        for (uint64_t i = 0; i < entries; ++i) {
            NIXL_RETURN_IF_ERROR(readRun(in, last, regions));
        }
    }
    return in.ok() ? Status() : badRegions("ends too early");
}

void writeVersion(base::ByteWriter& out, const Blob& blob) {
    out.fixed(blob.version);
    out.fixed(blob.base);
    out.varint(blob.removed.size());
    uint64_t last = 0;
    for (const uint64_t id : blob.removed) {
        out.zigzag(static_cast<int64_t>(id - last));
        last = id;
    }
}

Status readVersion(std::string_view body, Blob& blob) {
    base::ByteReader in(body);
    blob.version = in.fixed<uint64_t>();
    blob.base = in.fixed<uint64_t>();
    const uint64_t count = in.varint();
    if (count > kMaxRegions || count > in.left()) {  // each has a byte at least
        return Status::invalidParam("agent metadata: more removed regions than there can be");
    }
    blob.removed.reserve(count);
    uint64_t last = 0;
    for (uint64_t i = 0; i < count; ++i) {
        last += static_cast<uint64_t>(in.zigzag());
        blob.removed.push_back(last);
    }
    if (!in.ok() || blob.version == 0 || blob.base > blob.version) {
        return Status::invalidParam("agent metadata: the version is malformed");
    }
    return {};
}

Status readSection(Tag tag, std::string_view body, Blob& blob) {
    base::ByteReader in(body);
    switch (tag) {
        case Tag::IDENTITY: {
            blob.name = std::string(in.text());
            const auto flags = in.fixed<uint8_t>();
            blob.connection = (flags & 1) != 0;
            blob.partial = (flags & 2) != 0;
            readKey(in, blob.incarnation);
            if (blob.name.empty() || blob.name.size() > kMaxName) {
                return Status::invalidParam("agent metadata: a name of " +
                                            std::to_string(blob.name.size()) +
                                            " bytes (1 to 1024 are legal)");
            }
            if (!base::isUtf8(blob.name)) {
                return Status::invalidParam("agent metadata: the name is not UTF-8");
            }
            break;
        }
        case Tag::GRANT:
            readKey(in, blob.grant);
            break;
        case Tag::SESSION:
            blob.session = std::string(body);
            return {};
        case Tag::BACKEND:
            if (blob.backends.size() == kMaxBackends) {
                return Status::invalidParam("agent metadata: more than 32 backends");
            }
            blob.backends.push_back({std::string(in.text()), std::string(in.text())});
            break;
        case Tag::REGIONS:
            return readRegions(body, blob.regions);
        case Tag::VERSION:
            return readVersion(body, blob);
        case Tag::KEYS:
            while (in.ok() && !in.atEnd()) {
                RegionKey key;
                key.backend = static_cast<uint32_t>(in.varint());
                key.region = in.varint();
                key.key = std::string(in.text());
                blob.keys.push_back(std::move(key));
            }
            break;
    }
    return in.ok()
               ? Status()
               : Status::invalidParam("agent metadata: section " +
                                      std::to_string(static_cast<int>(tag)) + " ends too early");
}

}  // namespace

std::string encodeBlob(const Blob& blob) {
    base::ByteWriter out;
    out.raw(kMagic);
    out.fixed(kBlobVersion);
    base::ByteWriter identity;
    identity.text(blob.name);
    identity.fixed(static_cast<uint8_t>((blob.connection ? 1 : 0) | (blob.partial ? 2 : 0)));
    identity.raw(view(blob.incarnation));
    section(out, Tag::IDENTITY, identity);
    base::ByteWriter grant;
    grant.raw(view(blob.grant));
    section(out, Tag::GRANT, grant);
    if (!blob.session.empty()) {
        base::ByteWriter session;
        session.raw(blob.session);
        section(out, Tag::SESSION, session);
    }
    for (const BackendSection& backend : blob.backends) {
        base::ByteWriter body;
        body.text(backend.name);
        body.text(backend.connection);
        section(out, Tag::BACKEND, body);
    }
    base::ByteWriter regions;
    writeRegions(regions, blob.regions);
    section(out, Tag::REGIONS, regions);
    if (!blob.keys.empty()) {
        base::ByteWriter keys;
        for (const RegionKey& key : blob.keys) {
            keys.varint(key.backend);
            keys.varint(key.region);
            keys.text(key.key);
        }
        section(out, Tag::KEYS, keys);
    }
    if (blob.version != 0) {
        base::ByteWriter version;
        writeVersion(version, blob);
        section(out, Tag::VERSION, version);
    }
    out.fixed(base::crc32c(out.bytes()));
    return out.take();
}

Result<Blob> decodeBlob(std::string_view bytes) {
    if (bytes.size() < kMagic.size() + 2 + 4 || bytes.substr(0, kMagic.size()) != kMagic) {
        return Status::invalidParam("these " + std::to_string(bytes.size()) +
                                    " bytes are not agent metadata");
    }
    const std::string_view body = bytes.substr(0, bytes.size() - 4);
    base::ByteReader tail(bytes.substr(bytes.size() - 4));
    base::ByteReader in(body);
    in.raw(kMagic.size());
    if (const auto version = in.fixed<uint16_t>(); version == 0 || version > kBlobVersion) {
        return Status::mismatch("agent metadata of version " + std::to_string(version) +
                                "; this library reads up to " + std::to_string(kBlobVersion));
    }
    if (tail.fixed<uint32_t>() != base::crc32c(body)) {
        return Status::invalidParam("agent metadata: checksum differs (truncated or damaged)");
    }
    Blob blob;
    while (in.ok() && !in.atEnd()) {
        const auto tag = in.fixed<uint8_t>();
        const std::string_view content = in.text();
        if (!in.ok()) {
            break;
        }
        if (tag >= static_cast<uint8_t>(Tag::IDENTITY) &&
            tag <= static_cast<uint8_t>(Tag::VERSION)) {
            NIXL_RETURN_IF_ERROR(readSection(static_cast<Tag>(tag), content, blob));
        }
    }
    if (!in.ok()) {
        return Status::invalidParam("agent metadata: a section is longer than the blob");
    }
    if (blob.name.empty()) {
        return Status::invalidParam("agent metadata: no identity");
    }
    return blob;
}

}  // namespace nixl::metadata
