// What two lanes say to each other to connect queue pairs. Bytes from outside: decode() checks
// them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "queue.h"

namespace nixl::gpunetio {

struct LinkMessage {
    // CONNECT asks for queue pairs, ACCEPT has their numbers, REFUSE says why not, CLOSE ends them.
    enum Kind : uint8_t { CONNECT = 1, ACCEPT = 2, REFUSE = 3, CLOSE = 4 };
    Kind kind = CONNECT;
    uint64_t link = 0;  // of the one who connects
    uint32_t gpu = 0;   // CONNECT: of the one who is asked
    std::vector<QueueAddress> queues;
    std::string text;  // REFUSE
};

inline constexpr size_t kMostQueues = 64;

std::string encode(const LinkMessage& message);
std::optional<LinkMessage> decode(std::string_view bytes);

}  // namespace nixl::gpunetio
