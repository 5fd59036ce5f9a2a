// See input.h.
#include "lanes/stream/input.h"

#include <algorithm>
#include <utility>

#include "nixl/user_memory.h"

#include "base/crc32c.h"

namespace nixl::peer {

size_t StreamInput::space(iovec* out, size_t max) {
    direct_ = 0;
    size_t count = 0;
    if (frameWanted_ != 0) {
        out[count++] = {frame_.data() + frameFilled_, frameWanted_ - frameFilled_};
        direct_ = frameWanted_ - frameFilled_;
    } else if (state_ == State::CHUNK) {
        uint64_t bytes = 0;
        if (!sink_.discards()) {
            count = sink_.cursor().peek(out, max - 1, chunkLeft_, bytes);
            if (!sink_.enter(bytes)) {
                count = 0;
            }
        }
        if (sink_.discards()) {
            bytes = std::min<uint64_t>(chunkLeft_, sizeof(discard_));
            out[count++] = {discard_, bytes};
        }
        direct_ = bytes;
        if (bytes < chunkLeft_) {
            return count;
        }
    }
    out[count++] = staging_.space();
    return count;
}

Status StreamInput::received(size_t bytes) {
    const size_t direct = std::min(bytes, direct_);
    direct_ = 0;
    staging_.filled(bytes - direct);
    if (frameWanted_ != 0) {
        frameFilled_ += direct;
    } else if (direct > 0) {
        if (!sink_.discards()) {
            RunCursor& cursor = sink_.cursor();
            if (checked_ && !checksumOf(cursor, direct, runningChecksum_)) {
                sink_.memoryGone();
            }
            cursor.skip(direct);
            sink_.moved(direct);
        }
        chunkLeft_ -= static_cast<uint32_t>(direct);
    }
    sink_.leave();
    return process();
}

void StreamInput::beginPayload(uint64_t bytes, bool checked) {
    left_ = bytes;
    checked_ = checked;
    chunkLeft_ = 0;
    state_ = State::CHUNK_HEADER;
}

Status StreamInput::process() {
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
                NIXL_RETURN_IF_ERROR(takeChunk(progress));
                break;
        }
    }
    return {};
}

Status StreamInput::takeFrame(bool& progress) {
    if (sink_.busy()) {
        return {};
    }
    if (frameWanted_ != 0) {
        if (frameFilled_ < frameWanted_) {
            return {};
        }
        const std::string frame = std::exchange(frame_, {});
        frameWanted_ = 0;
        progress = true;
        const FrameView whole = nextFrame(frame).value();
        return sink_.onFrame(whole.header.type, whole.body);
    }
    const std::string_view bytes = staging_.bytes();
    auto next = nextFrame(bytes);
    if (!next.ok()) {
        return next.status();
    }
    const FrameView& frame = next.value();
    if (frame.size == 0) {
        return {};
    }
    NIXL_RETURN_IF_ERROR(sink_.onHeader(frame.header));
    if (!frame.whole) {
        if (frame.size > Staging::kSize) {
            frame_.assign(bytes);
            frameFilled_ = bytes.size();
            frameWanted_ = frame.size;
            frame_.resize(frame.size);
            staging_.use(bytes.size());
        }
        return {};
    }
    progress = true;
    NIXL_RETURN_IF_ERROR(sink_.onFrame(frame.header.type, frame.body));
    staging_.use(frame.size);
    return {};
}

Status StreamInput::takeChunkHeader(bool& progress) {
    const std::string_view bytes = staging_.bytes();
    if (bytes.size() < kChunkHeader) {
        return {};
    }
    const ChunkHeader header = decodeChunkHeader(bytes.data());
    staging_.use(kChunkHeader);
    progress = true;
    if (header.length == kAbort) {
        state_ = State::FRAME;
        return sink_.onPayloadEnd(false);
    }
    if (header.length == 0 || header.length > kChunkBytes || header.length > left_) {
        return Status::invalidParam("a chunk of " + std::to_string(header.length) + " bytes");
    }
    left_ -= header.length;
    chunkLeft_ = chunkSize_ = header.length;
    chunkChecksum_ = header.checksum;
    runningChecksum_ = 0;
    chunkBegin_ = sink_.cursor().offset();
    state_ = State::CHUNK;
    return {};
}

Status StreamInput::takeChunk(bool& progress) {
    if (chunkLeft_ == 0) {
        progress = true;
        return endChunk();
    }
    const std::string_view bytes = staging_.bytes().substr(0, chunkLeft_);
    if (bytes.empty()) {
        return {};
    }
    progress = true;
    if (!sink_.discards() && sink_.enter(bytes.size())) {
        scatter(bytes);
        sink_.leave();
    }
    chunkLeft_ -= static_cast<uint32_t>(bytes.size());
    staging_.use(bytes.size());
    return {};
}

void StreamInput::scatter(std::string_view bytes) {
    if (checked_) {
        runningChecksum_ = base::crc32c(runningChecksum_, bytes.data(), bytes.size());
    }
    RunCursor& cursor = sink_.cursor();
    iovec vectors[64];
    while (!bytes.empty()) {
        uint64_t here = 0;
        const size_t count = cursor.peek(vectors, 64, bytes.size(), here);
        if (!copyToUser({vectors, count}, bytes.data(), here)) {
            sink_.memoryGone();
            return;
        }
        bytes.remove_prefix(here);
        cursor.skip(here);
        sink_.moved(here);
    }
}

Status StreamInput::endChunk() {
    if (checked_ && !sink_.discards() && runningChecksum_ != chunkChecksum_) {
        sink_.damagedChunk(chunkSize_);
    }
    if (left_ > 0) {
        state_ = State::CHUNK_HEADER;
        return {};
    }
    state_ = State::FRAME;
    return sink_.onPayloadEnd(true);
}

}  // namespace nixl::peer
