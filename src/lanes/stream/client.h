// The initiator's side of one data connection, without I/O: parts of transfers go in, it says which
// bytes to send and where incoming ones go, and finished parts come out. One owner at a time (its
// connection's lock).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "lanes/stream/input.h"
#include "lanes/stream/parts.h"
#include "lanes/stream/wire.h"

namespace nixl::peer {

// Hears how the parts of its transfer ended. Called by whoever takes finished parts, without the
// connection's lock.
class PartOwner {
  public:
    virtual ~PartOwner() = default;
    virtual void partDone(Status status, const SegmentFailure& failure) = 0;
};

// One request of one post.
struct StreamPart {
    PreparedRequestPtr request;
    uint64_t id = 0;  // of the request, its own on the connection
    std::shared_ptr<PartOwner> owner;
};

struct FinishedPart {
    StreamPart part;
    Status status;
    SegmentFailure failure;  // where status is not OK
};

class StreamClient final : private StreamInput::Sink {
  public:
    StreamClient(std::string peer_name, const base::Digest& connection_key);
    StreamClient(const StreamClient&) = delete;
    StreamClient& operator=(const StreamClient&) = delete;

    // The most parts sent and not answered: more wait elsewhere, where any connection can take
    // them.
    static constexpr size_t kMaxOutstanding = 32;
    static constexpr uint64_t kMaxOutstandingBytes = 8 << 20;
    bool hasRoom() const {
        return waiting_.size() < kMaxOutstanding && outstandingBytes_ < kMaxOutstandingBytes;
    }
    bool idle() const { return waiting_.empty(); }
    void submit(StreamPart part);

    size_t output(iovec* out, size_t max);
    void sent(size_t bytes);
    bool wantsOutput() const { return sendIndex_ < waiting_.size() || outSent_ < out_.size(); }

    // At least two vectors.
    size_t inputSpace(iovec* out, size_t max) { return input_.space(out, max); }
    // An error is a violation of the protocol by the peer: the connection must be closed.
    Status received(size_t bytes) { return input_.received(bytes); }

    // The kernel refused memory of the last output() (`sending`) or inputSpace(); instead of sent()
    // or received(). The part fails, the connection goes on.
    Status memoryFault(bool sending);

    // From here on no byte of the owner's memory is read or written any more. Its parts that the
    // peer knows of are still answered (and come out as CANCELED); the others are dropped.
    void cancel(const PartOwner* owner);
    // The connection is gone.
    void fail(const Status& why);
    // Into an empty list, whose memory is used for the next ones.
    void takeFinished(std::vector<FinishedPart>& into) { finished_.swap(into); }
    std::vector<FinishedPart> takeFinished() { return std::exchange(finished_, {}); }
    bool hasFinished() const { return !finished_.empty(); }
    uint64_t outstandingBytes() const { return outstandingBytes_; }

  private:
    struct Waiting {
        StreamPart part;
        bool begun = false;     // the request is being or has been sent
        bool canceled = false;  // its memory must not be touched
        bool faulted = false;   // its memory is not there
        RunCursor cursor;       // WRITE: what was put into vectors; READ: what came
        uint64_t promised = 0;  // WRITE: bytes in chunks whose header was made
        uint64_t taken = 0;     // WRITE, faulted: bytes that were there
    };

    // Of StreamInput::Sink: the payload is that of the first part, a READ.
    Status onHeader(const FrameHeader& header) override;
    Status onFrame(FrameType /*type*/, std::string_view body) override { return onReply(body); }
    Status onPayloadEnd(bool whole) override;
    bool busy() const override { return false; }
    RunCursor& cursor() override { return waiting_.front().cursor; }
    bool discards() const override { return waiting_.front().canceled || !readFailure_.ok(); }
    bool enter(uint64_t /*bytes*/) override { return true; }
    void leave() override {}
    void moved(uint64_t /*bytes*/) override {}
    void memoryGone() override;
    void damagedChunk(uint32_t size) override;

    Status onReply(std::string_view body);
    void failRead(Status why);
    uint64_t movedOfRead() const;
    void finish(Status status, uint64_t offset);
    void beginNext();
    void nextChunk(Waiting& part);
    void takeChunkOver(Waiting& part);

    const std::string peerName_;
    const base::Digest connectionKey_;
    std::set<GrantId> proved_;

    // In the order of their requests; answers come in the same order.
    std::vector<Waiting> waiting_;
    size_t sendIndex_ = 0;  // the first that is not completely sent
    uint64_t outstandingBytes_ = 0;

    std::string out_;  // frames and chunk headers, and payload taken over from canceled parts
    size_t outSent_ = 0;
    std::string pendingGrants_;  // proofs to send before the next request
    uint32_t chunkToSend_ = 0;   // payload bytes of the current chunk that follow out_

    StreamInput input_{*this};
    Status readFailure_;  // of the first that waits; what follows is thrown away
    uint64_t readFailureOffset_ = 0;
    bool aborted_ = false;

    std::vector<FinishedPart> finished_;
};

}  // namespace nixl::peer
