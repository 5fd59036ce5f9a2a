// See target.h.
#include "lanes/stream/target.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/crc32c.h"
#include "memory/checked_copy.h"

namespace nixl::peer {

namespace {

// Replies nobody reads: the peer loses its connection.
constexpr size_t kMaxReplies = 1 << 20;
// So many last bytes of a READ are copied when they are promised.
constexpr uint64_t kCopiedTail = 4096;

Status targetMemoryGone() {
    return Status::backend("registered memory is not mapped", EFAULT);
}

}  // namespace

StreamTarget::StreamTarget(NetworkAccess& access, const base::Digest& connection_key)
    : access_(access), connectionKey_(connection_key) {}

StreamTarget::~StreamTarget() {
    unpin();
}

bool StreamTarget::pin(uint64_t bytes) {
    bool good = true;
    cursor_.regions(bytes, [&](uint32_t index) {
        memory::Region* const region = regions_[index].get();
        if (!good || !region->pin()) {
            if (good) {
                failRequest(Status::notFound("region " + std::to_string(region->id) +
                                             " is being deregistered"),
                            cursor_.offset());
            }
            good = false;
            return;
        }
        pinned_.push_back(region);
    });
    if (!good) {
        unpin();
    }
    return good;
}

void StreamTarget::unpin() {
    for (memory::Region* region : pinned_) {
        region->unpin();
    }
    pinned_.clear();
}

Status StreamTarget::memoryFault() {
    unpin();
    directInput_ = 0;
    if (!failure_.ok() || (state_ != State::CHUNK && !reading_)) {
        return Status(ErrorCode::BACKEND, "the engine's own memory is not there", EFAULT);
    }
    failRequest(targetMemoryGone(), cursor_.offset());
    return {};
}

void StreamTarget::failRequest(Status status, uint64_t offset) {
    if (failure_.ok()) {
        failure_ = std::move(status);
        // Any byte of a chunk that has not been checked may be a wrong one.
        const bool unchecked = state_ == State::CHUNK && (request_.flags & kRequestChecksum) != 0;
        failureOffset_ = unchecked ? chunkBegin_ : offset;
    }
}

size_t StreamTarget::inputSpace(iovec* out, size_t max) {
    directInput_ = 0;
    if (reading_ || out_.size() > kMaxReplies) {
        return 0;  // one request at a time
    }
    size_t count = 0;
    if (frameWanted_ != 0) {
        out[count++] = {frame_.data() + frameFilled_, frameWanted_ - frameFilled_};
        directInput_ = frameWanted_ - frameFilled_;
    } else if (state_ == State::CHUNK) {
        uint64_t bytes = 0;
        if (failure_.ok()) {
            count = cursor_.peek(out, max - 1, chunkLeft_, bytes);
            if (!pin(bytes)) {
                count = 0;
            }
        }
        if (!failure_.ok()) {
            bytes = std::min<uint64_t>(chunkLeft_, sizeof(discard_));
            out[count++] = {discard_, bytes};
        }
        directInput_ = bytes;
        if (bytes < chunkLeft_) {
            return count;
        }
    }
    out[count++] = staging_.space();
    return count;
}

Status StreamTarget::received(size_t bytes) {
    const size_t direct = std::min(bytes, directInput_);
    directInput_ = 0;
    staging_.filled(bytes - direct);
    if (frameWanted_ != 0) {
        frameFilled_ += direct;
    } else if (direct > 0) {
        if (failure_.ok()) {
            if ((request_.flags & kRequestChecksum) != 0 &&
                !checksumOf(cursor_, direct, runningChecksum_)) {
                failRequest(targetMemoryGone(), cursor_.offset());
            }
            cursor_.skip(direct);
            moved_ += direct;
        }
        chunkLeft_ -= static_cast<uint32_t>(direct);
    }
    unpin();
    return process();
}

Status StreamTarget::process() {
    for (bool progress = true; progress;) {
        progress = false;
        switch (state_) {
            case State::FRAME:
                NIXL_RETURN_IF_ERROR(takeFrame(progress));
                break;
            case State::CHUNK_HEADER:
                NIXL_RETURN_IF_ERROR(takeChunkHeader(progress));
                break;
            case State::CHUNK:
                NIXL_RETURN_IF_ERROR(takeStaged(progress));
                break;
        }
    }
    return {};
}

Status StreamTarget::takeFrame(bool& progress) {
    if (reading_) {
        return {};
    }
    if (frameWanted_ != 0) {
        if (frameFilled_ < frameWanted_) {
            return {};
        }
        const std::string frame = std::exchange(frame_, {});
        frameWanted_ = 0;
        progress = true;
        return onFrame(readHeader(frame).value().type,
                       std::string_view(frame).substr(kFrameHeader));
    }
    const std::string_view bytes = staging_.bytes();
    if (bytes.size() < kFrameHeader) {
        return {};
    }
    auto header = readHeader(bytes);
    if (!header.ok()) {
        return header.status();
    }
    const size_t size = kFrameHeader + header.value().length;
    if (bytes.size() < size) {
        if (size > Staging::kSize) {
            frame_.assign(bytes);
            frameFilled_ = bytes.size();
            frameWanted_ = size;
            frame_.resize(size);
            staging_.use(bytes.size());
        }
        return {};
    }
    progress = true;
    NIXL_RETURN_IF_ERROR(
        onFrame(header.value().type, bytes.substr(kFrameHeader, header.value().length)));
    staging_.use(size);
    return {};
}

Status StreamTarget::onFrame(FrameType type, std::string_view body) {
    switch (type) {
        case FrameType::GRANT:
            return onGrant(body);
        case FrameType::WRITE:
        case FrameType::READ:
            return onRequest(type, body);
        default:
            return Status::invalidParam("frame of type " + std::to_string(static_cast<int>(type)) +
                                        " does not belong on a data connection");
    }
}

Status StreamTarget::onGrant(std::string_view body) {
    auto decoded = GrantProof::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    const auto key = access_.grantKey(decoded.value().grant);
    if (!key || !base::equalSecret(base::asView(decoded.value().proof),
                                   base::asView(grantProof(*key, connectionKey_)))) {
        return {};  // requests that name it are refused, with a reply
    }
    if (proved_.size() == kMaxGrants) {
        return Status::invalidParam("more than " + std::to_string(kMaxGrants) +
                                    " grants on one connection");
    }
    proved_.insert(decoded.value().grant);
    return {};
}

void StreamTarget::checkRequest() {
    regions_.clear();
    if (!proved_.contains(request_.grant)) {
        failRequest(Status::notAllowed("the metadata used is no longer valid here"), 0);
        return;
    }
    for (const RegionRef& wanted : request_.regions) {
        auto region = access_.region(request_.grant, wanted.id, wanted.generation, request_.op);
        if (!region.ok()) {
            failRequest(region.status(), 0);
            return;
        }
        if (region.value()->type != MemType::DRAM) {
            failRequest(
                Status::notSupported("region " + std::to_string(wanted.id) + " is not host memory"),
                0);
            return;
        }
        regions_.push_back(std::move(region).value());
    }
    uint64_t offset = 0;
    for (const MemoryRun& run : request_.runs) {
        const memory::Region& region = *regions_[run.region];
        if (!runWithin(run, region.address, region.size)) {
            failRequest(Status::notAllowed("a range outside region " + std::to_string(region.id)),
                        offset);
            return;
        }
        offset += run.bytes();
    }
}

Status StreamTarget::onRequest(FrameType type, std::string_view body) {
    NIXL_RETURN_IF_ERROR(Request::decode(type, body, request_));
    if (out_.size() > kMaxReplies) {
        return Status::invalidParam("the peer asks and does not read the answers");
    }
    failure_ = {};
    failureOffset_ = 0;
    cursor_ = RunCursor(request_.runs);
    checkRequest();
    if (request_.op == OpType::WRITE) {
        state_ = State::CHUNK_HEADER;
        if (request_.bytes == 0) {
            finishWrite();
        }
        return {};
    }
    const bool good = failure_.ok();
    reply();
    if (good && request_.bytes > 0) {
        reading_ = true;
        prepareReadChunk();
    } else {
        regions_.clear();
    }
    return {};
}

Status StreamTarget::takeChunkHeader(bool& progress) {
    const std::string_view bytes = staging_.bytes();
    if (bytes.size() < kChunkHeader) {
        return {};
    }
    const ChunkHeader header = decodeChunkHeader(bytes.data());
    staging_.use(kChunkHeader);
    progress = true;
    if (header.length == kAbort) {
        failRequest(Status::canceled("ended by the sender"), cursor_.offset());
        finishWrite();
        return {};
    }
    const uint64_t left = request_.bytes;  // counted down below
    if (header.length == 0 || header.length > kChunkBytes || header.length > left) {
        return Status::invalidParam("a chunk of " + std::to_string(header.length) + " bytes");
    }
    request_.bytes -= header.length;
    chunkLeft_ = chunkSize_ = header.length;
    chunkChecksum_ = header.checksum;
    runningChecksum_ = 0;
    chunkBegin_ = cursor_.offset();
    state_ = State::CHUNK;
    return {};
}

Status StreamTarget::takeStaged(bool& progress) {
    if (chunkLeft_ == 0) {
        progress = true;
        return chunkDone();
    }
    std::string_view bytes = staging_.bytes().substr(0, chunkLeft_);
    if (bytes.empty()) {
        return {};
    }
    progress = true;
    const size_t size = bytes.size();
    if (failure_.ok() && pin(size)) {
        iovec vectors[64];
        while (!bytes.empty()) {
            uint64_t here = 0;
            const size_t count = cursor_.peek(vectors, 64, bytes.size(), here);
            if ((request_.flags & kRequestChecksum) != 0) {
                runningChecksum_ =
                    base::crc32c(runningChecksum_, bytes.data(), static_cast<size_t>(here));
            }
            if (!memory::copyChecked(vectors, count, const_cast<char*>(bytes.data()), here,
                                     memory::Copy::TO_VECTORS)) {
                failRequest(targetMemoryGone(), cursor_.offset());
                break;
            }
            bytes.remove_prefix(here);
            cursor_.skip(here);
            moved_ += here;
        }
        unpin();
    }
    chunkLeft_ -= static_cast<uint32_t>(size);
    staging_.use(size);
    return {};
}

Status StreamTarget::chunkDone() {
    if (failure_.ok() && (request_.flags & kRequestChecksum) != 0 &&
        runningChecksum_ != chunkChecksum_) {
        failRequest(damaged("", chunkSize_), cursor_.offset());
    }
    if (request_.bytes == 0) {
        finishWrite();
    } else {
        state_ = State::CHUNK_HEADER;
    }
    return {};
}

void StreamTarget::finishWrite() {
    reply();
    regions_.clear();
    state_ = State::FRAME;
}

void StreamTarget::reply() {
    Reply reply;
    reply.id = request_.id;
    reply.code = failure_.code();
    reply.systemErrno = failure_.systemErrno();
    reply.offset = failureOffset_;
    reply.reason = failure_.message();
    reply_.clear();
    reply.encode(reply_);
    out_ += reply_.bytes();
}

// Appends the header of the next chunk of a READ, or the end of it. The last bytes are copied along
// with their header: nothing can go wrong with them once they are promised, so that an end without
// an abort means that every byte is right.
void StreamTarget::prepareReadChunk() {
    const uint64_t left = request_.bytes - cursor_.offset();
    const bool last = left <= kCopiedTail;
    chunkLeft_ =
        static_cast<uint32_t>(last ? left : std::min<uint64_t>(left - kCopiedTail, kChunkBytes));
    tail_.clear();
    uint32_t checksum = 0;
    if (failure_.ok() && pin(chunkLeft_) && !prepareChunkBytes(last, tail_, checksum)) {
        failRequest(targetMemoryGone(), cursor_.offset());
    }
    char header[kChunkHeader];
    if (!failure_.ok()) {
        unpin();
        encodeChunkHeader(header, kAbort, 0);
        out_.append(header, kChunkHeader);
        reply();
        reading_ = false;
        regions_.clear();
        return;
    }
    unpin();
    encodeChunkHeader(header, chunkLeft_, checksum);
    out_.append(header, kChunkHeader);
    if (last) {
        out_ += tail_;
        moved_ += tail_.size();
        reading_ = false;
        regions_.clear();
    }
}

// False where the memory is not there.
bool StreamTarget::prepareChunkBytes(bool last, std::string& tail, uint32_t& checksum) {
    const bool wanted = (request_.flags & kRequestChecksum) != 0;
    if (!last) {
        return !wanted || checksumOf(cursor_, chunkLeft_, checksum);
    }
    if (!copyTail(tail)) {
        return false;
    }
    checksum = wanted ? base::crc32c(tail) : 0;
    return true;
}

bool StreamTarget::copyTail(std::string& tail) {
    RunCursor cursor = cursor_;
    iovec vectors[64];
    tail.resize(chunkLeft_);
    for (size_t at = 0; at < tail.size();) {
        uint64_t here = 0;
        const size_t count = cursor.peek(vectors, 64, tail.size() - at, here);
        if (!memory::copyChecked(vectors, count, tail.data() + at, here,
                                 memory::Copy::FROM_VECTORS)) {
            return false;
        }
        cursor.skip(here);
        at += here;
    }
    return true;
}

uint64_t StreamTarget::bytesLeft() const {
    if (reading_) {
        return request_.bytes - cursor_.offset();
    }
    return state_ == State::FRAME ? 0 : request_.bytes + chunkLeft_;
}

size_t StreamTarget::output(iovec* out, size_t max) {
    size_t count = 0;
    if (outSent_ < out_.size()) {
        out[count++] = {out_.data() + outSent_, out_.size() - outSent_};
    }
    if (reading_) {
        uint64_t bytes = 0;
        const size_t more = cursor_.peek(out + count, max - count, chunkLeft_, bytes);
        if (failure_.ok() && pin(bytes)) {
            count += more;
        } else if (count == 0) {
            // Revoked in the middle of a chunk, whose length is promised: what it lacks is zeros,
            // then comes the abort.
            const size_t zeros = std::min<size_t>(chunkLeft_, sizeof(discard_));
            std::memset(discard_, 0, zeros);
            out[count++] = {discard_, zeros};
        }
    }
    return count;
}

void StreamTarget::sent(size_t bytes) {
    unpin();
    const size_t head = std::min(bytes, out_.size() - outSent_);
    outSent_ += head;
    if (outSent_ == out_.size()) {
        out_.clear();
        outSent_ = 0;
    }
    const size_t payload = bytes - head;
    if (!reading_ || payload == 0) {
        return;
    }
    cursor_.skip(payload);
    moved_ += payload;
    chunkLeft_ -= static_cast<uint32_t>(payload);
    if (chunkLeft_ == 0) {
        prepareReadChunk();
    }
}

}  // namespace nixl::peer
