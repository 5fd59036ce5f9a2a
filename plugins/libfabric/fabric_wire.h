// What the lanes of two agents tell each other: where a rail is, keys of memory, and the messages
// that go beside the payload. All numbers little endian. Threads: any.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

namespace nixl::fabric {

using Id = std::array<uint8_t, 16>;
Id randomId();
uint64_t randomNumber();

// One rail of an agent, as its peers reach it.
struct RailAddress {
    std::string network;   // rails of one network reach each other
    std::string endpoint;  // what fi_getname gave
    Id instance{};         // another one after a restart
};

struct LaneAddress {
    std::string provider;
    std::vector<RailAddress> rails;
};
std::string encode(const LaneAddress& address);
Result<LaneAddress> decodeAddress(std::string_view bytes);

// The remote key of one registration at one rail. `base` is taken from addresses: 0 where the
// provider wants virtual ones.
struct RailKey {
    uint64_t key = 0;
    uint64_t base = 0;
};
std::string encode(const std::vector<RailKey>& keys);
Result<std::vector<RailKey>> decodeKeys(std::string_view bytes);

// Messages. Whoever connects says HELLO and gets WELCOME; before it first uses a key it asks
// (USE, USED). A target that takes memory back sends FENCE to those that use its key, and waits
// for their FENCED: they have nothing under way with it any more and begin nothing.
enum class MessageType : uint8_t { HELLO = 1, WELCOME, USE, USED, FENCE, FENCED, BYE };

struct Message {
    MessageType type = MessageType::HELLO;
    Id link{};                   // of the connection, chosen by who connects
    uint64_t number = 0;         // of a fence; HELLO, USE: 1 if the connection before was cut
    std::vector<uint64_t> keys;  // USE, USED, FENCE; at most kKeysOfMessage
    std::vector<bool> live;      // USED: for each key
    std::string agent;           // HELLO, USE: which link of an agent connects
    std::string endpoint;        // HELLO, USE: where it is
    Id instance{};               // HELLO, USE, WELCOME: of the sender's rail
};

inline constexpr size_t kMessageSize = 1024;
inline constexpr size_t kKeysOfMessage = 32;

std::string encode(const Message& message);
Result<Message> decodeMessage(std::string_view bytes);

}  // namespace nixl::fabric
