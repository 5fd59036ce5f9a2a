// See target.h.
#include "lanes/stream/target.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "nixl/user_memory.h"

#include "base/crc32c.h"

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
    if (stage_.used()) {
        return true;  // pinned while it is copied
    }
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
    input_.forget();
    if (!failure_.ok() || (!input_.inChunk() && !reading_)) {
        return Status(ErrorCode::BACKEND, "the engine's own memory is not there", EFAULT);
    }
    failRequest(targetMemoryGone(), cursor_.offset());
    return {};
}

void StreamTarget::failRequest(Status status, uint64_t offset) {
    if (failure_.ok()) {
        failure_ = std::move(status);
        failureOffset_ = input_.certain(offset);
    }
}

void StreamTarget::memoryGone() {
    failRequest(targetMemoryGone(), cursor_.offset());
}

void StreamTarget::damagedChunk(uint32_t size) {
    failRequest(damaged("", size), cursor_.offset());
}

size_t StreamTarget::inputSpace(iovec* out, size_t max) {
    if (reading_ || out_.size() > kMaxReplies) {
        input_.forget();
        return 0;  // one request at a time
    }
    return input_.space(out, max);
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
        if (!memory::isMemory(region.value()->type)) {
            failRequest(
                Status::notSupported("region " + std::to_string(wanted.id) + " is not memory"), 0);
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
    if (failure_.ok() && request_.bytes > 0) {
        beginStage();
    }
    if (request_.op == OpType::WRITE) {
        if (request_.bytes == 0) {
            finishWrite();
        } else {
            input_.beginPayload(request_.bytes, (request_.flags & kRequestChecksum) != 0);
        }
        return {};
    }
    const bool good = failure_.ok();
    reply();
    if (good && request_.bytes > 0) {
        reading_ = true;
        prepareReadChunk();
    } else {
        endRequest();
    }
    return {};
}

bool StreamTarget::pinAll() {
    for (const memory::RegionPtr& region : regions_) {
        if (!region->pin()) {
            failRequest(
                Status::notFound("region " + std::to_string(region->id) + " is being deregistered"),
                0);
            unpin();
            return false;
        }
        pinned_.push_back(region.get());
    }
    return true;
}

// The kernel cannot reach memory of GPUs: the request's bytes pass through a buffer.
void StreamTarget::beginStage() {
    const bool gpus = std::any_of(regions_.begin(), regions_.end(),
                                  [](const auto& region) { return region->type == MemType::VRAM; });
    if (!gpus) {
        return;
    }
    Status status = stage_.begin(request_.runs, regions_, request_.bytes);
    if (status.ok() && request_.op == OpType::READ && pinAll()) {
        status = stage_.fill();
        unpin();
    }
    if (!status.ok()) {
        failRequest(std::move(status), 0);
    }
    if (failure_.ok()) {
        cursor_ = RunCursor(stage_.runs());
    } else {
        stage_.end();
    }
}

// What has come of a WRITE goes to where it belongs.
void StreamTarget::drainStage() {
    const uint64_t bytes =
        failure_.ok() ? request_.bytes : std::min(failureOffset_, cursor_.offset());
    uint64_t done = 0;
    if (!pinAll()) {
        failureOffset_ = 0;
        return;
    }
    Status status = stage_.drain(bytes, done);
    unpin();
    if (!status.ok()) {
        failRequest(std::move(status), done);
        failureOffset_ = std::min(failureOffset_, done);
    }
}

void StreamTarget::endRequest() {
    stage_.end();
    regions_.clear();
}

Status StreamTarget::onPayloadEnd(bool whole) {
    if (!whole) {
        failRequest(Status::canceled("ended by the sender"), cursor_.offset());
    }
    finishWrite();
    return {};
}

void StreamTarget::finishWrite() {
    if (stage_.used()) {
        drainStage();
    }
    reply();
    endRequest();
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
    sendLeft_ =
        static_cast<uint32_t>(last ? left : std::min<uint64_t>(left - kCopiedTail, kChunkBytes));
    tail_.clear();
    uint32_t checksum = 0;
    if (failure_.ok() && pin(sendLeft_) && !prepareChunkBytes(last, tail_, checksum)) {
        failRequest(targetMemoryGone(), cursor_.offset());
    }
    char header[kChunkHeader];
    if (!failure_.ok()) {
        unpin();
        encodeChunkHeader(header, kAbort, 0);
        out_.append(header, kChunkHeader);
        reply();
        reading_ = false;
        endRequest();
        return;
    }
    unpin();
    encodeChunkHeader(header, sendLeft_, checksum);
    out_.append(header, kChunkHeader);
    if (last) {
        out_ += tail_;
        moved_ += tail_.size();
        reading_ = false;
        endRequest();
    }
}

// False where the memory is not there.
bool StreamTarget::prepareChunkBytes(bool last, std::string& tail, uint32_t& checksum) {
    const bool wanted = (request_.flags & kRequestChecksum) != 0;
    if (!last) {
        return !wanted || checksumOf(cursor_, sendLeft_, checksum);
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
    tail.resize(sendLeft_);
    for (size_t at = 0; at < tail.size();) {
        uint64_t here = 0;
        const size_t count = cursor.peek(vectors, 64, tail.size() - at, here);
        if (!copyFromUser(tail.data() + at, {vectors, count}, here)) {
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
    return input_.payloadLeft();
}

size_t StreamTarget::output(iovec* out, size_t max) {
    size_t count = 0;
    if (outSent_ < out_.size()) {
        out[count++] = {out_.data() + outSent_, out_.size() - outSent_};
    }
    if (reading_) {
        uint64_t bytes = 0;
        const size_t more = cursor_.peek(out + count, max - count, sendLeft_, bytes);
        if (failure_.ok() && pin(bytes)) {
            count += more;
        } else if (count == 0) {
            // Revoked in the middle of a chunk, whose length is promised: what it lacks is zeros,
            // then comes the abort.
            const size_t zeros = std::min<size_t>(sendLeft_, sizeof(zeros_));
            std::memset(zeros_, 0, zeros);
            out[count++] = {zeros_, zeros};
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
    sendLeft_ -= static_cast<uint32_t>(payload);
    if (sendLeft_ == 0) {
        prepareReadChunk();
    }
}

}  // namespace nixl::peer
