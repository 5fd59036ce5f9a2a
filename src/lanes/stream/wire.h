// What travels on data connections: requests with compressed descriptor lists, replies, and
// payload in chunks; and the cursor that turns runs of memory into vectors for the kernel.
// docs/protocol.md describes the bytes. Values; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/uio.h>

#include "nixl/backend.h"

#include "session/wire.h"

namespace nixl::peer {

// `count` pieces of `size` bytes whose addresses grow by `stride` (modulo 2^64).
struct MemoryRun {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t stride = 0;
    uint64_t count = 1;
    uint32_t region = 0;  // index into the request's regions

    uint64_t bytes() const { return size * count; }
};

struct RegionRef {
    uint64_t id = 0;
    uint32_t generation = 0;
    bool operator==(const RegionRef&) const = default;
};

// Limits of one request.
inline constexpr uint64_t kMaxRequestBytes = 64 << 20;
inline constexpr size_t kMaxRequestRuns = 16'384;
inline constexpr size_t kMaxRequestRegions = 4096;

// Payload travels in chunks: {length u32, checksum u32} and the bytes. kAbort in place of the
// length says that the rest does not come.
inline constexpr uint32_t kChunkBytes = 256 << 10;
inline constexpr size_t kChunkHeader = 8;
inline constexpr uint32_t kAbort = 0xffff'ffff;

inline constexpr uint8_t kRequestChecksum = 1;  // flag: chunks carry a CRC32C

struct Request {
    OpType op = OpType::READ;
    uint64_t id = 0;
    GrantId grant = 0;
    uint8_t flags = 0;
    uint64_t bytes = 0;  // sum of the runs
    std::vector<RegionRef> regions;
    std::vector<MemoryRun> runs;
    void encode(base::ByteWriter& out) const;  // the whole frame
    // Into `request`, whose memory is used again.
    static Status decode(FrameType type, std::string_view body, Request& request);
};

// Writes the id of an encoded request over the one it has.
void putRequestId(char* frame, uint64_t id);

struct Reply {
    uint64_t id = 0;
    ErrorCode code = ErrorCode::OK;
    int32_t systemErrno = 0;
    uint64_t offset = 0;  // of the failure, in bytes of the request
    std::string reason;
    void encode(base::ByteWriter& out) const;  // the whole frame
    static Result<Reply> decode(std::string_view body);
    Status status(std::string_view peer) const;
};

// Why a chunk of `size` bytes whose checksum differs fails.
Status damaged(const std::string& who, uint32_t size);

void encodeChunkHeader(char* out, uint32_t length, uint32_t checksum);
struct ChunkHeader {
    uint32_t length = 0;
    uint32_t checksum = 0;
};
ChunkHeader decodeChunkHeader(const char* in);

// A place in a list of runs. The runs must outlive it.
class RunCursor {
  public:
    RunCursor() = default;
    explicit RunCursor(std::span<const MemoryRun> runs) : runs_(runs) {}

    // Fills up to `max` vectors with at most `limit` bytes from here on; returns how many vectors
    // and sets `bytes`. Pieces that follow each other become one vector. Does not move.
    size_t peek(iovec* out, size_t max, uint64_t limit, uint64_t& bytes) const;
    void skip(uint64_t bytes);
    // The region of each byte peek would give, for pinning: calls with every region once in a row.
    template <typename Call>
    void regions(uint64_t bytes, Call&& call) const {
        uint64_t seen = 0;
        uint32_t last = UINT32_MAX;
        for (size_t at = run_; at < runs_.size() && seen < bytes; ++at) {
            const uint64_t here = at == run_ ? step_ * runs_[at].size + inner_ : 0;
            seen += runs_[at].bytes() - here;
            if (runs_[at].region != last) {
                last = runs_[at].region;
                call(last);
            }
        }
    }
    uint64_t offset() const { return offset_; }

  private:
    std::span<const MemoryRun> runs_;
    size_t run_ = 0;
    uint64_t step_ = 0;
    uint64_t inner_ = 0;
    uint64_t offset_ = 0;
};

// Whether all of `run` lies in [address, address + size).
bool runWithin(const MemoryRun& run, uint64_t address, uint64_t size);

// Continues `crc` with `bytes` of user memory from the cursor's place on. False as copyFromUser().
bool checksumOf(const RunCursor& from, uint64_t bytes, uint32_t& crc);

}  // namespace nixl::peer
