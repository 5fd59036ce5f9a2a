// The binary form of descriptor and registration lists: magic, version, kind, memory type, count,
// entries as differences, CRC32C over all before it. Reading trusts nothing.
#include <string>

#include "nixl/descriptor.h"

#include "base/bytes.h"
#include "base/crc32c.h"

namespace nixl {
namespace {

constexpr std::string_view kMagic = "NXDL";
constexpr uint8_t kVersion = 1;
constexpr uint8_t kKindRuns = 0;
constexpr uint8_t kKindRegistration = 1;

void writeHead(base::ByteWriter& out, uint8_t kind, MemType type, uint64_t entries) {
    out.raw(kMagic);
    out.fixed(kVersion);
    out.fixed(kind);
    out.fixed(static_cast<uint8_t>(type));
    out.varint(entries);
}

std::string seal(base::ByteWriter& out) {
    out.fixed(base::crc32c(out.bytes()));
    return out.take();
}

struct Head {
    MemType type;
    uint64_t entries;
};

Result<Head> readHead(std::string_view bytes, base::ByteReader& in, uint8_t kind) {
    if (bytes.size() < kMagic.size() + 8 || bytes.substr(0, kMagic.size()) != kMagic) {
        return Status::invalidParam("these " + std::to_string(bytes.size()) +
                                    " bytes are not a serialized descriptor list");
    }
    base::ByteReader tail(bytes.substr(bytes.size() - 4));
    if (tail.fixed<uint32_t>() != base::crc32c(bytes.substr(0, bytes.size() - 4))) {
        return Status::invalidParam("serialized descriptor list: checksum differs");
    }
    in = base::ByteReader(bytes.substr(0, bytes.size() - 4));
    in.raw(kMagic.size());
    if (const auto version = in.fixed<uint8_t>(); version != kVersion) {
        return Status::mismatch("serialized descriptor list of version " + std::to_string(version) +
                                "; this library reads 1");
    }
    if (in.fixed<uint8_t>() != kind) {
        return Status::mismatch(kind == kKindRuns
                                    ? "serialized registration list where a transfer list is due"
                                    : "serialized transfer list where a registration list is due");
    }
    const auto type = in.fixed<uint8_t>();
    if (type > static_cast<uint8_t>(MemType::FILE)) {
        return Status::invalidParam("serialized descriptor list: memory type " +
                                    std::to_string(type));
    }
    return Head{static_cast<MemType>(type), in.varint()};
}

Status damaged() {
    return Status::invalidParam("serialized descriptor list: ends too early");
}

}  // namespace

std::string DescriptorList::serialize() const {
    DescriptorList compact = *this;
    compact.compress();
    base::ByteWriter out;
    const bool flat = compact.runs_.empty();
    writeHead(out, kKindRuns, type_, flat ? compact.flat_.size() : compact.runs_.size());
    uint64_t end = 0;
    const auto write = [&](const DescriptorRun& run) {
        out.zigzag(static_cast<int64_t>(run.address - end));
        out.varint(run.size);
        out.varint(run.deviceId);
        out.varint(run.count);
        if (run.count > 1) {
            out.zigzag(static_cast<int64_t>(run.stride));
        }
        end = run.address + (run.count - 1) * run.stride + run.size;
    };
    for (const DescriptorRun& run : compact.runs_) {
        write(run);
    }
    for (const Descriptor& d : compact.flat_) {
        write({d.address, d.size, d.deviceId, 0, 1});
    }
    return seal(out);
}

Result<DescriptorList> DescriptorList::deserialize(std::string_view bytes) {
    base::ByteReader in{{}};
    Result<Head> head = readHead(bytes, in, kKindRuns);
    if (!head.ok()) {
        return head.status();
    }
    DescriptorList list(head.value().type);
    uint64_t end = 0;
    for (uint64_t i = 0; i < head.value().entries; ++i) {
        DescriptorRun run;
        run.address = end + static_cast<uint64_t>(in.zigzag());
        run.size = in.varint();
        run.deviceId = in.varint();
        run.count = in.varint();
        run.stride = run.count > 1 ? static_cast<uint64_t>(in.zigzag()) : 0;
        if (!in.ok() || run.count == 0 || run.count > UINT64_MAX - list.count_) {
            return damaged();
        }
        end = run.address + (run.count - 1) * run.stride + run.size;
        if (run.count == 1) {
            list.append(run.address, run.size, run.deviceId);
        } else {
            list.appendRun(run);
        }
    }
    if (!in.ok() || !in.atEnd()) {
        return damaged();
    }
    return list;
}

std::string RegistrationList::serialize() const {
    base::ByteWriter out;
    writeHead(out, kKindRegistration, type_, entries.size());
    uint64_t end = 0;
    for (const Entry& entry : entries) {
        out.zigzag(static_cast<int64_t>(entry.address - end));
        out.varint(entry.size);
        out.varint(entry.deviceId);
        out.text(entry.metadata);
        end = entry.address + entry.size;
    }
    return seal(out);
}

Result<RegistrationList> RegistrationList::deserialize(std::string_view bytes) {
    base::ByteReader in{{}};
    Result<Head> head = readHead(bytes, in, kKindRegistration);
    if (!head.ok()) {
        return head.status();
    }
    RegistrationList list(head.value().type);
    uint64_t end = 0;
    for (uint64_t i = 0; i < head.value().entries; ++i) {
        Entry entry;
        entry.address = end + static_cast<uint64_t>(in.zigzag());
        entry.size = in.varint();
        entry.deviceId = in.varint();
        entry.metadata = std::string(in.text());
        if (!in.ok()) {
            return damaged();
        }
        end = entry.address + entry.size;
        list.entries.push_back(std::move(entry));
    }
    if (!in.atEnd()) {
        return damaged();
    }
    return list;
}

}  // namespace nixl
