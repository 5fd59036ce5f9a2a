// See fabric_wire.h.
#include "fabric_wire.h"

#include <cstring>

#include <sys/random.h>

namespace nixl::fabric {
namespace {

constexpr uint8_t kFormat = 1;

class Writer {
  public:
    template <typename Number>
    void number(Number value) {
        for (size_t i = 0; i < sizeof(Number); ++i) {
            bytes_.push_back(static_cast<char>(value >> (8 * i) & 0xff));
        }
    }
    void text(const std::string& value) {
        number(static_cast<uint16_t>(value.size()));
        bytes_ += value;
    }
    void id(const Id& value) {
        bytes_.append(reinterpret_cast<const char*>(value.data()), value.size());
    }
    std::string take() { return std::move(bytes_); }

  private:
    std::string bytes_;
};

// Reads zeros beyond the end, and knows then that something was missing.
class Reader {
  public:
    explicit Reader(std::string_view bytes) : bytes_(bytes) {}
    template <typename Number>
    Number number() {
        uint64_t value = 0;
        const std::string_view part = take(sizeof(Number));
        for (size_t i = 0; i < part.size(); ++i) {
            value |= static_cast<uint64_t>(static_cast<uint8_t>(part[i])) << (8 * i);
        }
        return static_cast<Number>(value);
    }
    std::string text() { return std::string(take(number<uint16_t>())); }
    Id id() {
        Id value{};
        const std::string_view part = take(value.size());
        std::memcpy(value.data(), part.data(), part.size());
        return value;
    }
    bool whole() const { return !short_ && bytes_.empty(); }

  private:
    std::string_view take(size_t size) {
        if (size > bytes_.size()) {
            short_ = true;
            bytes_ = {};
            return {};
        }
        const std::string_view part = bytes_.substr(0, size);
        bytes_.remove_prefix(size);
        return part;
    }
    std::string_view bytes_;
    bool short_ = false;
};

}  // namespace

uint64_t randomNumber() {
    uint64_t value = 0;
    while (getrandom(&value, sizeof(value), 0) != sizeof(value)) {
    }
    return value;
}

Id randomId() {
    Id id{};
    for (size_t at = 0; at < id.size(); at += sizeof(uint64_t)) {
        const uint64_t value = randomNumber();
        std::memcpy(id.data() + at, &value, sizeof(value));
    }
    return id;
}

std::string encode(const LaneAddress& address) {
    Writer out;
    out.number(kFormat);
    out.text(address.provider);
    out.number(static_cast<uint8_t>(address.rails.size()));
    for (const RailAddress& rail : address.rails) {
        out.text(rail.network);
        out.text(rail.endpoint);
        out.id(rail.instance);
    }
    return out.take();
}

Result<LaneAddress> decodeAddress(std::string_view bytes) {
    Reader in(bytes);
    LaneAddress address;
    const auto format = in.number<uint8_t>();
    address.provider = in.text();
    address.rails.resize(in.number<uint8_t>());
    for (RailAddress& rail : address.rails) {
        rail.network = in.text();
        rail.endpoint = in.text();
        rail.instance = in.id();
    }
    if (format != kFormat || !in.whole() || address.rails.empty()) {
        return Status::invalidParam("LIBFABRIC: what the peer gave is no address of this lane (" +
                                    std::to_string(bytes.size()) + " bytes)");
    }
    return address;
}

std::string encode(const std::vector<RailKey>& keys) {
    Writer out;
    out.number(kFormat);
    for (const RailKey& key : keys) {
        out.number(key.key);
        out.number(key.base);
    }
    return out.take();
}

Result<std::vector<RailKey>> decodeKeys(std::string_view bytes) {
    constexpr size_t kOne = 2 * sizeof(uint64_t);
    Reader in(bytes);
    if (bytes.size() <= kOne || bytes.size() % kOne != 1 || in.number<uint8_t>() != kFormat) {
        return Status::invalidParam("LIBFABRIC: what the peer gave are no keys of this lane (" +
                                    std::to_string(bytes.size()) + " bytes)");
    }
    std::vector<RailKey> keys(bytes.size() / kOne);
    for (RailKey& key : keys) {
        key.key = in.number<uint64_t>();
        key.base = in.number<uint64_t>();
    }
    return keys;
}

std::string encode(const Message& message) {
    Writer out;
    out.number(kFormat);
    out.number(static_cast<uint8_t>(message.type));
    out.id(message.link);
    out.number(message.number);
    out.number(static_cast<uint8_t>(message.keys.size()));
    for (size_t i = 0; i < message.keys.size(); ++i) {
        out.number(message.keys[i]);
        out.number(static_cast<uint8_t>(i < message.live.size() && message.live[i] ? 1 : 0));
    }
    out.text(message.agent);
    out.text(message.endpoint);
    out.id(message.instance);
    return out.take();
}

Result<Message> decodeMessage(std::string_view bytes) {
    Reader in(bytes);
    Message message;
    const auto format = in.number<uint8_t>();
    const auto type = in.number<uint8_t>();
    message.type = static_cast<MessageType>(type);
    message.link = in.id();
    message.number = in.number<uint64_t>();
    const size_t count = in.number<uint8_t>();
    for (size_t i = 0; i < count && i < kKeysOfMessage; ++i) {
        message.keys.push_back(in.number<uint64_t>());
        message.live.push_back(in.number<uint8_t>() != 0);
    }
    message.agent = in.text();
    message.endpoint = in.text();
    message.instance = in.id();
    if (format != kFormat || type < static_cast<uint8_t>(MessageType::HELLO) ||
        type > static_cast<uint8_t>(MessageType::BYE) || count > kKeysOfMessage || !in.whole()) {
        return Status::invalidParam("LIBFABRIC: a message of another version or damaged");
    }
    return message;
}

}  // namespace nixl::fabric
