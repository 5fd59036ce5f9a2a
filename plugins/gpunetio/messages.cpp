// See messages.h. All numbers little endian.
#include "messages.h"

#include <cstring>

namespace nixl::gpunetio {
namespace {

template <typename T>
void put(std::string& out, T value) {
    for (unsigned i = 0; i < sizeof(T); ++i) {
        out.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i) & 0xff));
    }
}

template <typename T>
bool take(std::string_view& bytes, T& value) {
    if (bytes.size() < sizeof(T)) {
        return false;
    }
    uint64_t read = 0;
    for (unsigned i = 0; i < sizeof(T); ++i) {
        read |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
    }
    value = static_cast<T>(read);
    bytes.remove_prefix(sizeof(T));
    return true;
}

bool takeQueue(std::string_view& bytes, QueueAddress& queue) {
    if (!take(bytes, queue.number) || !take(bytes, queue.lid) || bytes.size() < queue.gid.size()) {
        return false;
    }
    std::memcpy(queue.gid.data(), bytes.data(), queue.gid.size());
    bytes.remove_prefix(queue.gid.size());
    return true;
}

}  // namespace

std::string encode(const LinkMessage& message) {
    std::string out;
    put(out, static_cast<uint8_t>(message.kind));
    put(out, message.link);
    put(out, message.gpu);
    put(out, static_cast<uint32_t>(message.queues.size()));
    for (const QueueAddress& queue : message.queues) {
        put(out, queue.number);
        put(out, queue.lid);
        out.append(reinterpret_cast<const char*>(queue.gid.data()), queue.gid.size());
    }
    return out + message.text;
}

std::optional<LinkMessage> decode(std::string_view bytes) {
    LinkMessage message;
    uint8_t kind = 0;
    uint32_t count = 0;
    if (!take(bytes, kind) || !take(bytes, message.link) || !take(bytes, message.gpu) ||
        !take(bytes, count) || kind < LinkMessage::CONNECT || kind > LinkMessage::CLOSE ||
        count > kMostQueues) {
        return std::nullopt;
    }
    message.kind = static_cast<LinkMessage::Kind>(kind);
    message.queues.resize(count);
    for (QueueAddress& queue : message.queues) {
        if (!takeQueue(bytes, queue)) {
            return std::nullopt;
        }
    }
    message.text = bytes;
    return message;
}

}  // namespace nixl::gpunetio
