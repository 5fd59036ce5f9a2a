// See messages.h.
#include "exchange_tcp/messages.h"

#include <algorithm>

#include "base/utf8.h"

namespace nixl::exchange_tcp {

namespace {

constexpr uint8_t kFollow = 1;
constexpr size_t kMaxReason = 512;

size_t limitOf(MessageType type) {
    switch (type) {
        case MessageType::FETCH:
        case MessageType::INVALIDATE:
        case MessageType::PART:
            return kMaxSmallMessage;
        case MessageType::LOAD:
        case MessageType::ANSWER:
            return kMaxMetadata + kMaxExtra;
    }
    return 0;
}

size_t begin(base::ByteWriter& out, MessageType type) {
    return peer::beginFrame(out, static_cast<peer::FrameType>(type));
}

Status malformed(const char* message) {
    return Status::invalidParam(std::string("malformed ") + message);
}

std::string shortReason(const Status& status) {
    if (status.message().size() <= kMaxReason) {
        return status.message();
    }
    size_t end = kMaxReason;
    while (end > 0 && (static_cast<uint8_t>(status.message()[end]) & 0xC0) == 0x80) {
        --end;  // not in the middle of a character
    }
    return status.message().substr(0, end);
}

}  // namespace

Result<Header> readHeader(std::string_view bytes) {
    base::ByteReader in(bytes.substr(0, kHeader));
    Header header;
    header.length = in.fixed<uint32_t>();
    const auto type = in.fixed<uint8_t>();
    header.type = static_cast<MessageType>(type);
    const auto flags = in.fixed<uint8_t>();
    const auto reserved = in.fixed<uint16_t>();
    const size_t limit = limitOf(header.type);
    if (!in.ok() || limit == 0 || flags != 0 || reserved != 0) {
        return Status::invalidParam("not a message of the exchange (type " + std::to_string(type) +
                                    ")");
    }
    if (header.length > limit) {
        return Status::invalidParam("a message of " + std::to_string(header.length) +
                                    " bytes (at most " + std::to_string(limit) +
                                    " are legal for type " + std::to_string(type) + ")");
    }
    return header;
}

std::string Fetch::encode() const {
    base::ByteWriter out;
    const size_t at = begin(out, MessageType::FETCH);
    out.varint(request);
    out.fixed<uint8_t>(follow ? kFollow : 0);
    out.raw(base::asView(known));
    out.fixed(version);
    peer::endFrame(out, at);
    return out.take();
}

Result<Fetch> Fetch::decode(std::string_view body) {
    base::ByteReader in(body);
    Fetch fetch;
    fetch.request = in.varint();
    const auto flags = in.fixed<uint8_t>();
    fetch.follow = (flags & kFollow) != 0;
    const std::string_view known = in.raw(fetch.known.size());
    std::copy(known.begin(), known.end(), fetch.known.begin());
    fetch.version = in.fixed<uint64_t>();
    if (!in.ok() || !in.atEnd() || fetch.request == 0 || (flags & ~kFollow) != 0) {
        return malformed("FETCH");
    }
    return fetch;
}

std::string Load::encodeHead(uint64_t request, size_t metadata) {
    base::ByteWriter out;
    const size_t at = begin(out, MessageType::LOAD);
    out.varint(request);
    out.patch32(at, static_cast<uint32_t>(out.size() - kHeader + metadata));
    return out.take();
}

Result<Load> Load::decode(std::string_view body) {
    base::ByteReader in(body);
    Load load;
    load.request = in.varint();
    load.metadata = in.raw(in.left());
    if (!in.ok() || load.metadata.empty()) {
        return malformed("LOAD");
    }
    return load;
}

std::string Invalidate::encode() const {
    base::ByteWriter out;
    const size_t at = begin(out, MessageType::INVALIDATE);
    out.varint(request);
    peer::endFrame(out, at);
    return out.take();
}

Result<Invalidate> Invalidate::decode(std::string_view body) {
    base::ByteReader in(body);
    Invalidate invalidate;
    invalidate.request = in.varint();
    if (!in.ok() || !in.atEnd() || invalidate.request == 0) {
        return malformed("INVALIDATE");
    }
    return invalidate;
}

std::string Answer::encodeHead(uint64_t request, const Status& status, size_t metadata) {
    base::ByteWriter out;
    const size_t at = begin(out, MessageType::ANSWER);
    out.varint(request);
    out.fixed(static_cast<uint8_t>(-static_cast<int>(status.code())));
    out.text(shortReason(status));
    out.patch32(at, static_cast<uint32_t>(out.size() - kHeader + metadata));
    return out.take();
}

Result<Answer> Answer::decode(std::string_view body) {
    base::ByteReader in(body);
    Answer answer;
    answer.request = in.varint();
    const auto code = in.fixed<uint8_t>();
    std::string reason(in.text());
    answer.metadata = in.raw(in.left());
    if (!in.ok() || reason.size() > kMaxReason || !base::isUtf8(reason) ||
        code > -static_cast<int>(ErrorCode::TIMEOUT)) {
        return malformed("ANSWER");
    }
    if (code != 0) {
        for (char& letter : reason) {  // shown to people
            letter = static_cast<uint8_t>(letter) < 0x20 || letter == 0x7f ? ' ' : letter;
        }
        answer.status = Status(static_cast<ErrorCode>(-static_cast<int>(code)), std::move(reason));
    }
    return answer;
}

std::string encodePart() {
    base::ByteWriter out;
    peer::endFrame(out, begin(out, MessageType::PART));
    return out.take();
}

}  // namespace nixl::exchange_tcp
