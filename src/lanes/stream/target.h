// The target's side of one data connection, without I/O: it says where the next incoming bytes go
// and which bytes to send next; whoever owns the socket moves them. Every access is checked against
// the agent's regions, and a region is pinned only while bytes move, so a deregistration never
// waits for the network. One owner at a time.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "lanes/stream/device_stage.h"
#include "lanes/stream/input.h"
#include "lanes/stream/wire.h"
#include "session/network_access.h"

namespace nixl::peer {

class StreamTarget final : private StreamInput::Sink {
  public:
    StreamTarget(NetworkAccess& access, const base::Digest& connection_key);
    ~StreamTarget();
    StreamTarget(const StreamTarget&) = delete;
    StreamTarget& operator=(const StreamTarget&) = delete;

    // Where incoming bytes go, at most `max` (at least 2) vectors; 0: nothing is taken now. Keeps
    // regions pinned until received(), which must follow (with 0 where nothing came).
    size_t inputSpace(iovec* out, size_t max);
    // An error is a violation of the protocol: the connection must be closed.
    Status received(size_t bytes) { return input_.received(bytes); }
    // What to send; keeps regions pinned until sent(), which must follow.
    size_t output(iovec* out, size_t max);
    void sent(size_t bytes);
    bool wantsOutput() const { return !out_.empty() || reading_; }
    // The kernel refused memory of the last output() or inputSpace() (EFAULT); instead of sent() or
    // received(). The request fails, the connection goes on.
    Status memoryFault();
    // Of the request that is being served: what has not come or has not been sent yet.
    uint64_t bytesLeft() const;
    // What one connection may prove.
    static constexpr size_t kMaxGrants = 4096;
    // Bytes moved for the peer.
    uint64_t bytesMoved() const { return moved_; }

  private:
    // Of StreamInput::Sink: the payload is that of request_, a WRITE.
    Status onHeader(const FrameHeader& /*header*/) override { return {}; }
    Status onFrame(FrameType type, std::string_view body) override;
    Status onPayloadEnd(bool whole) override;
    bool busy() const override { return reading_; }
    RunCursor& cursor() override { return cursor_; }
    bool discards() const override { return !failure_.ok(); }
    bool enter(uint64_t bytes) override { return stage_.used() || pin(bytes); }
    void leave() override { unpin(); }
    void moved(uint64_t bytes) override { moved_ += bytes; }
    void memoryGone() override;
    void damagedChunk(uint32_t size) override;

    Status onGrant(std::string_view body);
    Status onRequest(FrameType type, std::string_view body);
    void checkRequest();
    bool pinAll();
    void beginStage();
    void drainStage();
    void endRequest();
    void finishWrite();
    void prepareReadChunk();
    bool prepareChunkBytes(bool last, std::string& tail, uint32_t& checksum);
    bool copyTail(std::string& tail);
    void failRequest(Status status, uint64_t offset);
    void reply();
    bool pin(uint64_t bytes);
    void unpin();

    NetworkAccess& access_;
    const base::Digest connectionKey_;
    std::set<GrantId> proved_;

    StreamInput input_{*this};
    char zeros_[4096];

    Request request_;
    std::vector<memory::RegionPtr> regions_;
    DeviceStage stage_;  // of a request for memory of GPUs
    RunCursor cursor_;
    Status failure_;  // of the current request
    uint64_t failureOffset_ = 0;
    uint32_t sendLeft_ = 0;  // of the chunk of a READ that is being sent

    std::string out_;
    size_t outSent_ = 0;
    base::ByteWriter reply_;  // its memory is used again
    std::string tail_;        // the same
    bool reading_ = false;    // the payload of request_ is being sent
    std::vector<memory::Region*> pinned_;
    uint64_t moved_ = 0;
};

}  // namespace nixl::peer
