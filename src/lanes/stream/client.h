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

class StreamClient {
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
    size_t inputSpace(iovec* out, size_t max);
    // An error is a violation of the protocol by the peer: the connection must be closed.
    Status received(size_t bytes);

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
    enum class State : uint8_t { FRAME, CHUNK_HEADER, CHUNK };
    struct Waiting {
        StreamPart part;
        bool begun = false;     // the request is being or has been sent
        bool canceled = false;  // its memory must not be touched
        bool faulted = false;   // its memory is not there
        RunCursor cursor;       // WRITE: what was put into vectors; READ: what came
        uint64_t promised = 0;  // WRITE: bytes in chunks whose header was made
        uint64_t taken = 0;     // WRITE, faulted: bytes that were there
    };

    Status process();
    Status takeFrame(bool& progress);
    Status takeChunkHeader(bool& progress);
    Status takeStaged(bool& progress);
    Status onReply(std::string_view body);
    Status chunkDone();
    void scatter(Waiting& part, std::string_view bytes);
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

    State state_ = State::FRAME;
    Staging staging_;
    size_t directInput_ = 0;
    char discard_[4096];
    uint64_t readLeft_ = 0;  // bytes of the READ being answered that are not yet in a chunk
    uint32_t chunkLeft_ = 0;
    uint32_t chunkSize_ = 0;
    uint32_t chunkChecksum_ = 0;
    uint32_t runningChecksum_ = 0;
    uint64_t chunkBegin_ = 0;  // of the chunk, in bytes of the READ
    Status readFailure_;       // of the first that waits; what follows is thrown away
    uint64_t readFailureOffset_ = 0;
    bool aborted_ = false;

    std::vector<FinishedPart> finished_;
};

}  // namespace nixl::peer
