// See wire.h.
#include "lanes/stream/wire.h"

#include <algorithm>

#include "nixl/user_memory.h"

#include "base/crc32c.h"

namespace nixl::peer {

namespace {

constexpr uint8_t kLastErrorCode = 13;

Status malformed(const char* what, const char* why) {
    return Status::invalidParam(std::string("malformed ") + what + ": " + why);
}

}  // namespace

void Request::encode(base::ByteWriter& out) const {
    const size_t begin = beginFrame(out, op == OpType::WRITE ? FrameType::WRITE : FrameType::READ);
    out.fixed(id);
    out.fixed(grant);
    out.fixed(flags);
    out.varint(regions.size());
    for (const RegionRef& region : regions) {
        out.varint(region.id);
        out.varint(region.generation);
    }
    out.varint(runs.size());
    uint64_t last = 0;
    for (const MemoryRun& run : runs) {
        // The lowest bit says whether there is more than one piece.
        const bool many = run.count > 1;
        out.varint(static_cast<uint64_t>(run.region) << 1 | (many ? 1 : 0));
        out.zigzag(static_cast<int64_t>(run.address - last));
        out.varint(run.size);
        if (many) {
            out.zigzag(static_cast<int64_t>(run.stride));
            out.varint(run.count);
        }
        last = run.address;
    }
    endFrame(out, begin);
}

void putRequestId(char* frame, uint64_t id) {
    for (size_t i = 0; i < sizeof(id); ++i) {
        frame[kFrameHeader + i] = static_cast<char>(id >> (8 * i));
    }
}

Status Request::decode(FrameType type, std::string_view body, Request& request) {
    base::ByteReader in(body);
    request.bytes = 0;
    request.op = type == FrameType::WRITE ? OpType::WRITE : OpType::READ;
    request.id = in.fixed<uint64_t>();
    request.grant = in.fixed<uint64_t>();
    request.flags = in.fixed<uint8_t>();
    const uint64_t regions = in.varint();
    // Two bytes a region and three a run at least: the counts cannot promise more than there is.
    if (!in.ok() || regions > kMaxRequestRegions || regions > in.left() / 2) {
        return malformed("request", "regions");
    }
    request.regions.resize(regions);
    for (RegionRef& region : request.regions) {
        region.id = in.varint();
        const uint64_t generation = in.varint();
        if (generation > UINT32_MAX) {
            return malformed("request", "generation");
        }
        region.generation = static_cast<uint32_t>(generation);
    }
    const uint64_t runs = in.varint();
    if (!in.ok() || runs > kMaxRequestRuns || runs > in.left() / 3) {
        return malformed("request", "runs");
    }
    request.runs.assign(runs, MemoryRun());
    uint64_t last = 0;
    for (MemoryRun& run : request.runs) {
        const uint64_t region = in.varint();
        run.address = last + static_cast<uint64_t>(in.zigzag());
        run.size = in.varint();
        if ((region & 1) != 0) {
            run.stride = static_cast<uint64_t>(in.zigzag());
            run.count = in.varint();
        }
        last = run.address;
        if (!in.ok() || (region >> 1) >= regions || run.size == 0 || run.count == 0 ||
            run.size > kMaxRequestBytes || run.count > kMaxRequestBytes / run.size ||
            request.bytes + run.bytes() > kMaxRequestBytes) {
            return malformed("request", "a run");
        }
        run.region = static_cast<uint32_t>(region >> 1);
        request.bytes += run.bytes();
    }
    if (!in.atEnd() || (request.flags & ~kRequestChecksum) != 0) {
        return malformed("request", "length");
    }
    return {};
}

void Reply::encode(base::ByteWriter& out) const {
    const size_t begin = beginFrame(out, FrameType::REPLY);
    out.fixed(id);
    out.fixed(static_cast<uint8_t>(-static_cast<int>(code)));
    out.varint(static_cast<uint32_t>(systemErrno));
    out.varint(offset);
    out.text(std::string_view(reason).substr(0, kMaxReason));
    endFrame(out, begin);
}

Result<Reply> Reply::decode(std::string_view body) {
    base::ByteReader in(body);
    Reply reply;
    reply.id = in.fixed<uint64_t>();
    const auto code = in.fixed<uint8_t>();
    const uint64_t number = in.varint();
    reply.offset = in.varint();
    const std::string_view reason = in.text();
    if (!in.ok() || !in.atEnd() || code > kLastErrorCode || number > 4095 ||
        reason.size() > kMaxReason) {
        return malformed("reply", "contents");
    }
    reply.code = static_cast<ErrorCode>(-static_cast<int>(code));
    reply.systemErrno = static_cast<int32_t>(number);
    for (const char c : reason) {  // it will be shown to people
        reply.reason += c >= ' ' && c != '\x7f' ? c : '?';
    }
    return reply;
}

Status Reply::status(std::string_view peer) const {
    if (code == ErrorCode::OK) {
        return {};
    }
    return {code, "agent \"" + std::string(peer) + "\": " + reason, systemErrno};
}

void encodeChunkHeader(char* out, uint32_t length, uint32_t checksum) {
    for (size_t i = 0; i < 4; ++i) {
        out[i] = static_cast<char>(length >> (8 * i));
        out[4 + i] = static_cast<char>(checksum >> (8 * i));
    }
}

ChunkHeader decodeChunkHeader(const char* in) {
    base::ByteReader reader(std::string_view(in, kChunkHeader));
    ChunkHeader header;
    header.length = reader.fixed<uint32_t>();
    header.checksum = reader.fixed<uint32_t>();
    return header;
}

Status damaged(const std::string& who, uint32_t size) {
    return Status::backend(who + "the checksum of a chunk of " + std::to_string(size) +
                           " bytes differs: damaged on the way, or changed while it moved");
}

size_t RunCursor::peek(iovec* out, size_t max, uint64_t limit, uint64_t& bytes) const {
    size_t count = 0;
    size_t run = run_;
    uint64_t step = step_;
    uint64_t inner = inner_;
    bytes = 0;
    while (run < runs_.size() && bytes < limit) {
        const MemoryRun& current = runs_[run];
        const uint64_t address = current.address + step * current.stride + inner;
        uint64_t size = current.size - inner;
        uint64_t steps = 1;
        if (current.stride == current.size) {  // pieces that follow each other
            steps = current.count - step;
            size = steps * current.size - inner;
        }
        size = std::min(size, limit - bytes);
        char* const begin = reinterpret_cast<char*>(address);
        if (count > 0 &&
            static_cast<char*>(out[count - 1].iov_base) + out[count - 1].iov_len == begin) {
            out[count - 1].iov_len += size;
        } else if (count < max) {
            out[count++] = {begin, size};
        } else {
            break;
        }
        bytes += size;
        inner = 0;
        step += steps;
        if (step == current.count) {
            step = 0;
            ++run;
        }
    }
    return count;
}

void RunCursor::skip(uint64_t bytes) {
    offset_ += bytes;
    while (bytes > 0 && run_ < runs_.size()) {
        const MemoryRun& current = runs_[run_];
        const uint64_t done = step_ * current.size + inner_;
        const uint64_t left = current.bytes() - done;
        if (bytes >= left) {
            bytes -= left;
            ++run_;
            step_ = inner_ = 0;
            continue;
        }
        step_ = (done + bytes) / current.size;
        inner_ = (done + bytes) % current.size;
        bytes = 0;
    }
}

bool runWithin(const MemoryRun& run, uint64_t address, uint64_t size) {
    using Wide = __int128;
    const Wide first = run.address;
    const Wide last = first + static_cast<Wide>(static_cast<int64_t>(run.stride)) * (run.count - 1);
    const Wide low = std::min(first, last);
    const Wide high = std::max(first, last) + run.size;
    return low >= static_cast<Wide>(address) && high <= static_cast<Wide>(address) + size;
}

bool checksumOf(const RunCursor& from, uint64_t bytes, uint32_t& crc) {
    RunCursor cursor = from;
    iovec vectors[64];
    // By way of a copy that stays in the cache: whoever asks for checksums must not be able to make
    // us read memory that is not there.
    char copy[32 << 10];
    while (bytes > 0) {
        uint64_t here = 0;
        const size_t count =
            cursor.peek(vectors, 64, std::min<uint64_t>(bytes, sizeof(copy)), here);
        if (count == 0) {
            break;
        }
        if (!copyFromUser(copy, {vectors, count}, here)) {
            return false;
        }
        crc = base::crc32c(crc, copy, here);
        cursor.skip(here);
        bytes -= here;
    }
    return true;
}

}  // namespace nixl::peer
