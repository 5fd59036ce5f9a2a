// See mooncake_memory.h.
#include "mooncake_memory.h"

#include <algorithm>

namespace nixl::mooncake {
namespace {

constexpr char kVersion = 1;
constexpr size_t kWord = 8;

void append(std::string& bytes, uint64_t word) {
    for (unsigned shift = 0; shift < 64; shift += 8) {
        bytes.push_back(static_cast<char>(word >> shift & 0xff));
    }
}

uint64_t read(std::string_view bytes) {
    uint64_t word = 0;
    for (size_t i = kWord; i-- > 0;) {
        word = word << 8 | static_cast<uint8_t>(bytes[i]);
    }
    return word;
}

}  // namespace

std::string MooncakeMemory::key() const {
    std::string bytes(1, kVersion);
    for (const uint64_t cut : cuts_) {
        append(bytes, cut);
    }
    return bytes;
}

Result<std::unique_ptr<BackendMemory>> MooncakeRemoteMemory::parse(const MemoryRegion& region,
                                                                   std::string_view key) {
    if (key.empty() || key.front() != kVersion || (key.size() - 1) % kWord != 0) {
        return Status::invalidParam("MOONCAKE: what the peer gave of its memory is none of ours");
    }
    std::vector<uint64_t> cuts;
    for (key.remove_prefix(1); !key.empty(); key.remove_prefix(kWord)) {
        cuts.push_back(read(key));
    }
    const auto outside = [&](uint64_t cut) {
        return cut <= region.address || cut - region.address >= region.size;
    };
    if (!std::is_sorted(cuts.begin(), cuts.end()) ||
        std::any_of(cuts.begin(), cuts.end(), outside)) {
        return Status::invalidParam("MOONCAKE: the peer cuts its memory outside of it");
    }
    return std::unique_ptr<BackendMemory>(std::make_unique<MooncakeRemoteMemory>(std::move(cuts)));
}

const std::vector<uint64_t>* cutsOf(const BackendMemory* memory) {
    if (const auto* const own = dynamic_cast<const MooncakeMemory*>(memory); own != nullptr) {
        return &own->cuts();
    }
    const auto* const remote = dynamic_cast<const MooncakeRemoteMemory*>(memory);
    return remote == nullptr ? nullptr : &remote->cuts();
}

std::string EngineAddress::text() const {
    return "mooncake1 " + protocol + " " + segment;
}

Result<EngineAddress> EngineAddress::parse(std::string_view text) {
    const size_t first = text.find(' ');
    const size_t second = first == std::string_view::npos ? first : text.find(' ', first + 1);
    if (second == std::string_view::npos || text.substr(0, first) != "mooncake1" ||
        second + 1 == text.size() || text.size() > 512) {
        return Status::invalidParam("MOONCAKE: what the peer gave is no address of an engine");
    }
    return EngineAddress{std::string(text.substr(first + 1, second - first - 1)),
                         std::string(text.substr(second + 1))};
}

}  // namespace nixl::mooncake
