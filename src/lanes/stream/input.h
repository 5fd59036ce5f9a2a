// The receiving half of a data connection, the same on both sides: frames, and payload in chunks
// that goes straight to where it belongs. What is whole, and what becomes of it, a sink decides.
// Owned by its side of the connection; not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include <sys/uio.h>

#include "nixl/error.h"

#include "lanes/stream/wire.h"

namespace nixl::peer {

// Bytes that were read and not yet used, and room for more.
class Staging {
  public:
    static constexpr size_t kSize = 16 << 10;

    std::string_view bytes() const { return {buffer_->data() + begin_, end_ - begin_}; }
    void use(size_t n) {
        begin_ += n;
        if (begin_ == end_) {
            begin_ = end_ = 0;
        }
    }
    iovec space() {
        if (begin_ > 0 && end_ == kSize) {
            std::memmove(buffer_->data(), buffer_->data() + begin_, end_ - begin_);
            end_ -= begin_;
            begin_ = 0;
        }
        return {buffer_->data() + end_, kSize - end_};
    }
    void filled(size_t n) { end_ += n; }

  private:
    std::unique_ptr<std::array<char, kSize>> buffer_ = std::make_unique<std::array<char, kSize>>();
    size_t begin_ = 0;
    size_t end_ = 0;
};

class StreamInput {
  public:
    class Sink {
      public:
        // Whether a frame may come that begins so; called as soon as its header is there.
        virtual Status onHeader(const FrameHeader& header) = 0;
        // A whole frame; may begin a payload.
        virtual Status onFrame(FrameType type, std::string_view body) = 0;
        // The end of the payload: all of it has come, or the sender gave up.
        virtual Status onPayloadEnd(bool whole) = 0;
        // No frame is taken now.
        virtual bool busy() const = 0;

        // Where the payload goes: its memory, from where it has come to.
        virtual RunCursor& cursor() = 0;
        // The rest of it goes nowhere.
        virtual bool discards() const = 0;
        // Around what touches the next `bytes` of its memory; false: they must not be touched, and
        // discards() is true now.
        virtual bool enter(uint64_t bytes) = 0;
        virtual void leave() = 0;
        virtual void moved(uint64_t bytes) = 0;
        // The memory is gone, or a chunk is damaged: discards() is true from here on.
        virtual void memoryGone() = 0;
        virtual void damagedChunk(uint32_t size) = 0;

      protected:
        ~Sink() = default;
    };

    explicit StreamInput(Sink& sink) : sink_(sink) {}
    StreamInput(const StreamInput&) = delete;
    StreamInput& operator=(const StreamInput&) = delete;

    // Where the next bytes go, in at most `max` (at least 2) vectors. Enters the sink's memory
    // until received() or forget().
    size_t space(iovec* out, size_t max);
    // So many have come. An error is a violation of the protocol.
    Status received(size_t bytes);
    // Of the last space() nothing is used.
    void forget() { direct_ = 0; }

    // `bytes` of payload follow, in chunks. REQUIRES: bytes > 0
    void beginPayload(uint64_t bytes, bool checked);
    // It does not come any more.
    void dropPayload() { state_ = State::FRAME; }
    bool inChunk() const { return state_ == State::CHUNK; }
    // Of what has come up to `offset`, how much is known to be right: any byte of a chunk that has
    // not been checked may be a wrong one.
    uint64_t certain(uint64_t offset) const {
        return state_ == State::CHUNK && checked_ ? chunkBegin_ : offset;
    }
    // Payload that has not come yet.
    uint64_t payloadLeft() const { return state_ == State::FRAME ? 0 : left_ + chunkLeft_; }

  private:
    enum class State : uint8_t { FRAME, CHUNK_HEADER, CHUNK };

    Status process();
    Status takeFrame(bool& progress);
    Status takeChunkHeader(bool& progress);
    Status takeChunk(bool& progress);
    Status endChunk();
    void scatter(std::string_view bytes);

    Sink& sink_;
    State state_ = State::FRAME;
    Staging staging_;
    std::string frame_;       // an incomplete frame longer than the staging buffer
    size_t frameWanted_ = 0;  // its full size; 0: none
    size_t frameFilled_ = 0;
    size_t direct_ = 0;  // bytes of the last space() that are not staging
    char discard_[4096];

    bool checked_ = false;
    uint64_t left_ = 0;  // of the payload, not yet in a chunk
    uint32_t chunkLeft_ = 0;
    uint32_t chunkSize_ = 0;
    uint32_t chunkChecksum_ = 0;
    uint32_t runningChecksum_ = 0;
    uint64_t chunkBegin_ = 0;  // in bytes of the payload
};

}  // namespace nixl::peer
