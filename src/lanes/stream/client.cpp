// See client.h.
#include "lanes/stream/client.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "nixl/user_memory.h"

#include "base/crc32c.h"

namespace nixl::peer {

namespace {

Status notMapped() {
    return Status::backend("local memory is not mapped", EFAULT);
}

}  // namespace

StreamClient::StreamClient(std::string peer_name, const base::Digest& connection_key)
    : peerName_(std::move(peer_name)), connectionKey_(connection_key) {}

void StreamClient::submit(StreamPart part) {
    const PreparedRequest& request = *part.request;
    if (proved_.insert(request.grant).second) {
        base::ByteWriter out;
        const size_t begin = beginFrame(out, FrameType::GRANT);
        GrantProof{request.grant, grantProof(request.key, connectionKey_)}.encode(out);
        endFrame(out, begin);
        pendingGrants_ += out.bytes();  // never inside a chunk that is being sent
    }
    outstandingBytes_ += request.bytes;
    Waiting& waiting = waiting_.emplace_back();
    waiting.cursor = RunCursor(request.local);
    waiting.part = std::move(part);
}

// Puts the request of the next part into out_.
void StreamClient::beginNext() {
    Waiting& next = waiting_[sendIndex_];
    const PreparedRequest& request = *next.part.request;
    out_ += std::exchange(pendingGrants_, {});
    const size_t begin = out_.size();
    out_ += request.frame;
    putRequestId(out_.data() + begin, next.part.id);
    next.begun = true;
    if (request.op == OpType::READ || request.bytes == 0) {
        ++sendIndex_;
    } else {
        nextChunk(next);
    }
}

void StreamClient::nextChunk(Waiting& part) {
    const uint64_t left = part.part.request->bytes - part.promised;
    if (left == 0) {
        ++sendIndex_;
        return;
    }
    char header[kChunkHeader];
    if (part.canceled || part.faulted) {
        encodeChunkHeader(header, kAbort, 0);
        out_.append(header, kChunkHeader);
        ++sendIndex_;
        return;
    }
    const auto size = static_cast<uint32_t>(std::min<uint64_t>(left, kChunkBytes));
    uint32_t checksum = 0;
    if ((part.part.request->flags & kRequestChecksum) != 0 &&
        !checksumOf(part.cursor, size, checksum)) {
        part.faulted = true;
        part.taken = part.cursor.offset();
        return nextChunk(part);
    }
    chunkToSend_ = size;
    part.promised += size;
    encodeChunkHeader(header, chunkToSend_, checksum);
    out_.append(header, kChunkHeader);
}

size_t StreamClient::output(iovec* out, size_t max) {
    while (chunkToSend_ == 0 && sendIndex_ < waiting_.size() && out_.size() < (64 << 10)) {
        if (waiting_[sendIndex_].begun) {
            break;
        }
        beginNext();
    }
    size_t count = 0;
    if (outSent_ < out_.size()) {
        out[count++] = {out_.data() + outSent_, out_.size() - outSent_};
    }
    if (chunkToSend_ > 0) {
        uint64_t bytes = 0;
        count += waiting_[sendIndex_].cursor.peek(out + count, max - count, chunkToSend_, bytes);
    }
    return count;
}

void StreamClient::sent(size_t bytes) {
    const size_t head = std::min(bytes, out_.size() - outSent_);
    outSent_ += head;
    if (outSent_ == out_.size()) {
        out_.clear();
        outSent_ = 0;
    }
    const size_t payload = bytes - head;
    if (payload == 0) {
        return;
    }
    Waiting& current = waiting_[sendIndex_];
    current.cursor.skip(payload);
    chunkToSend_ -= static_cast<uint32_t>(payload);
    if (chunkToSend_ == 0) {
        nextChunk(current);
    }
}

Status StreamClient::onHeader(const FrameHeader& header) {
    // Replies are short: whatever does not fit into the staging buffer is none.
    if (header.type != FrameType::REPLY || header.length > kMaxHandshakeFrame) {
        return Status::invalidParam("not a reply");
    }
    return {};
}

Status StreamClient::onReply(std::string_view body) {
    auto decoded = Reply::decode(body);
    if (!decoded.ok()) {
        return decoded.status();
    }
    const Reply& reply = decoded.value();
    if (waiting_.empty() || !waiting_.front().begun || reply.id != waiting_.front().part.id) {
        return Status::invalidParam("a reply to nothing that was asked");
    }
    const PreparedRequest& request = *waiting_.front().part.request;
    if (request.op == OpType::READ && reply.code == ErrorCode::OK && request.bytes > 0) {
        if (aborted_) {
            return Status::invalidParam("an aborted read that went well");
        }
        readFailure_ = {};
        input_.beginPayload(request.bytes, (request.flags & kRequestChecksum) != 0);
        return {};
    }
    if (request.op == OpType::WRITE && sendIndex_ == 0 && reply.code == ErrorCode::OK) {
        return Status::invalidParam("a reply to a write that is not complete");
    }
    if (sendIndex_ == 0) {
        return Status::invalidParam("a reply to a request that is still being sent");
    }
    aborted_ = false;
    if (!readFailure_.ok()) {  // before the peer gave up
        finish(std::exchange(readFailure_, {}), readFailureOffset_);
        return {};
    }
    finish(reply.status(peerName_), reply.offset);
    return {};
}

// Ends the first part that waits.
void StreamClient::finish(Status status, uint64_t offset) {
    Waiting& first = waiting_.front();
    const uint64_t bytes = first.part.request->bytes;
    FinishedPart finished;
    if (first.canceled) {
        finished.status = Status::canceled("canceled");
    } else if (first.faulted) {
        finished.status = notMapped();
        offset = std::min(offset, first.taken);  // the peer counts what was sent in its place
    } else {
        finished.status = std::move(status);
    }
    if (!finished.status.ok()) {
        offset = std::min(offset, bytes);
        finished.failure.planOffset = first.part.request->planOffset;
        finished.failure.size = bytes;
        finished.failure.done = offset;
        finished.failure.systemErrno = finished.status.systemErrno();
    }
    finished.part = std::move(first.part);
    finished_.push_back(std::move(finished));
    outstandingBytes_ -= bytes;
    waiting_.erase(waiting_.begin());
    --sendIndex_;
}

Status StreamClient::onPayloadEnd(bool whole) {
    if (whole) {
        finish(std::exchange(readFailure_, {}), readFailureOffset_);
    } else {
        aborted_ = true;  // the reply with the reason follows
    }
    return {};
}

void StreamClient::memoryGone() {
    failRead(notMapped());
}

void StreamClient::damagedChunk(uint32_t size) {
    failRead(damaged("agent \"" + peerName_ + "\": ", size));
}

void StreamClient::failRead(Status why) {
    readFailureOffset_ = movedOfRead();
    readFailure_ = std::move(why);
}

// The rest of the promised chunk goes out from a copy, then comes the abort.
void StreamClient::takeChunkOver(Waiting& part) {
    iovec vectors[64];
    while (chunkToSend_ > 0) {
        uint64_t here = 0;
        const size_t count = part.cursor.peek(vectors, 64, chunkToSend_, here);
        const size_t end = out_.size();
        out_.resize(end + here);  // zeros where the memory is not there: the part fails anyway
        static_cast<void>(copyFromUser(out_.data() + end, {vectors, count}, here));
        part.cursor.skip(here);
        chunkToSend_ -= static_cast<uint32_t>(here);
    }
    nextChunk(part);
}

Status StreamClient::memoryFault(bool sending) {
    input_.forget();
    if (sending && chunkToSend_ > 0) {
        waiting_[sendIndex_].faulted = true;
        waiting_[sendIndex_].taken = waiting_[sendIndex_].cursor.offset();
        takeChunkOver(waiting_[sendIndex_]);
        return {};
    }
    if (!sending && input_.inChunk() && readFailure_.ok()) {
        memoryGone();
        return {};
    }
    return Status(ErrorCode::BACKEND, "the engine's own memory is not there", EFAULT);
}

void StreamClient::cancel(const PartOwner* owner) {
    for (size_t i = 0; i < waiting_.size();) {
        Waiting& part = waiting_[i];
        if (part.part.owner.get() != owner || part.canceled) {
            ++i;
            continue;
        }
        part.canceled = true;
        if (part.begun) {
            if (i == sendIndex_ && chunkToSend_ > 0) {
                takeChunkOver(part);
            }
            ++i;
            continue;
        }
        FinishedPart finished;
        finished.status = Status::canceled("canceled");
        finished.failure.planOffset = part.part.request->planOffset;
        finished.failure.size = part.part.request->bytes;
        outstandingBytes_ -= part.part.request->bytes;
        finished.part = std::move(part.part);
        finished_.push_back(std::move(finished));
        waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    }
}

// How much of the first part, a READ, is known to be in place.
uint64_t StreamClient::movedOfRead() const {
    if (!readFailure_.ok()) {
        return readFailureOffset_;
    }
    return input_.certain(waiting_.front().cursor.offset());
}

void StreamClient::fail(const Status& why) {
    sendIndex_ = waiting_.size();
    while (!waiting_.empty()) {
        // Of a WRITE what was sent may have got lost on the way.
        const bool read = waiting_.front().part.request->op == OpType::READ;
        finish(why, read ? movedOfRead() : 0);
        input_.dropPayload();
        readFailure_ = {};
    }
    out_.clear();
    outSent_ = 0;
    chunkToSend_ = 0;
}

}  // namespace nixl::peer
