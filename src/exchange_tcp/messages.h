// What two agents say on an exchange connection after the handshake: layout, limits, encoding and
// bounds-checked decoding. docs/metadata.md describes it. Values; not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nixl/error.h"

#include "base/bytes.h"
#include "session/wire.h"

namespace nixl::exchange_tcp {

// Frames as those of a session {length u32, type u8, flags u8 = 0, reserved u16 = 0}.
enum class MessageType : uint8_t {
    FETCH = 48,       // asks for the metadata of whoever reads this
    LOAD = 49,        // the writer's own metadata, whole, partial, or what changed
    INVALIDATE = 50,  // forget the writer
    ANSWER = 51,      // the end of one of these
    PART = 52,        // the writer closes for lack of room: no reason to come again
};

inline constexpr size_t kHeader = peer::kFrameHeader;
inline constexpr size_t kMaxMetadata = 64 << 20;
// Of LOAD and ANSWER beside the metadata.
inline constexpr size_t kMaxExtra = 1 << 10;
inline constexpr size_t kMaxSmallMessage = 4 << 10;

struct Header {
    uint32_t length = 0;
    MessageType type{};
};

// At least kHeader bytes.
Result<Header> readHeader(std::string_view bytes);

struct Fetch {
    uint64_t request = 0;  // chosen by who asks, not 0
    bool follow = false;   // changes are to be told from here on
    peer::Key known{};     // the incarnation known, zeros: none
    uint64_t version = 0;  // of what is known
    std::string encode() const;
    static Result<Fetch> decode(std::string_view body);
};

// The frame of a LOAD or ANSWER up to the metadata, which follows and has `metadata` bytes.
struct Load {
    uint64_t request = 0;  // 0: nobody asks for an answer
    std::string_view metadata;
    static std::string encodeHead(uint64_t request, size_t metadata);
    static Result<Load> decode(std::string_view body);
};

struct Invalidate {
    uint64_t request = 0;
    std::string encode() const;
    static Result<Invalidate> decode(std::string_view body);
};

struct Answer {
    uint64_t request = 0;  // 0: to a LOAD that asked for none, which was of no use
    Status status;
    std::string_view metadata;  // of a FETCH; empty: what is known is the newest
    static std::string encodeHead(uint64_t request, const Status& status, size_t metadata);
    static Result<Answer> decode(std::string_view body);
};

std::string encodePart();

}  // namespace nixl::exchange_tcp
