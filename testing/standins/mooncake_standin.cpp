// A stand-in of Mooncake's C interface between engines of one process, for what the real engine
// does not do when asked: memory it refuses, requests that never end, refused batches, other
// layouts. What it does is said by NIXL_MOONCAKE_STANDIN when an engine is made: words of
// "refuse-memory" (registrations of 666 bytes), "refuse-batch" (those of 3 requests), "hold"
// (requests of 777 bytes never end), "shift" (it moves other bytes than it was asked for, as
// another layout would).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// As transfer_engine_c.h has it.
struct Request {
    int32_t opcode;
    void* source;
    int32_t target;
    uint32_t file;
    uint64_t offset;
    uint64_t length;
};
struct Status {
    int32_t state;
    uint64_t bytes;
};

constexpr int32_t kPending = 1;
constexpr int32_t kCompleted = 4;
constexpr int32_t kFailed = 6;

struct Engine {
    std::string name;
    std::string behaviour;
    std::map<uint64_t, uint64_t> memory;  // begin → end
    std::vector<std::string> segments;
    bool installed = false;
    bool does(const char* what) const { return behaviour.find(what) != std::string::npos; }
};

// Everything, behind one lock. Never destroyed.
struct World {
    std::mutex mutex;
    std::set<Engine*> engines;
    std::map<uint64_t, std::vector<Status>> batches;
    uint64_t nextBatch = 1;
    int nextPort = 20000;
};

World& world() {
    static auto* const one = new World;
    return *one;
}

Engine* named(const std::string& name) {
    for (Engine* const engine : world().engines) {
        if (engine->name == name) {
            return engine;
        }
    }
    return nullptr;
}

Status carryOut(const Engine& from, const Request& request) {
    const auto index = static_cast<size_t>(request.target);
    const Engine* const to = index < from.segments.size() ? named(from.segments[index]) : nullptr;
    if (to == nullptr) {
        return {kFailed, 0};
    }
    if (from.does("hold") && request.length == 777) {
        return {kPending, 0};
    }
    const bool inside = std::any_of(to->memory.begin(), to->memory.end(), [&](const auto& piece) {
        return request.offset >= piece.first && request.offset + request.length <= piece.second;
    });
    if (!inside) {
        return {kFailed, 0};
    }
    auto* const there = reinterpret_cast<char*>(request.offset) + (from.does("shift") ? 1 : 0);
    auto* const here = static_cast<char*>(request.source);
    request.opcode == 0 ? std::memmove(here, there, request.length)
                        : std::memmove(there, here, request.length);
    return {kCompleted, request.length};
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

#ifndef MOONCAKE_STANDIN_OLD
// As an engine has it whose tcp transport acknowledges.
extern const char kMooncakeStandinProtocol[];
const char kMooncakeStandinProtocol[] = "tcp_proto_version";
#endif

void* createTransferEngine(const char* metadata,
                           const char* name,
                           const char* /*host*/,
                           uint64_t /*port*/,
                           int /*discover*/) {
    if (std::strcmp(metadata, "P2PHANDSHAKE") != 0) {
        return nullptr;
    }
    const std::lock_guard lock(world().mutex);
    auto* const engine = new Engine;
    const char* const behaviour = std::getenv("NIXL_MOONCAKE_STANDIN");
    engine->behaviour = behaviour == nullptr ? "" : behaviour;
    engine->name = std::string(name) + ":" + std::to_string(world().nextPort++);
    world().engines.insert(engine);
    return engine;
}

void destroyTransferEngine(void* engine) {
    const std::lock_guard lock(world().mutex);
    world().engines.erase(static_cast<Engine*>(engine));
    delete static_cast<Engine*>(engine);
}

int getLocalIpAndPort(void* engine, char* text, size_t size) {
    std::snprintf(text, size, "%s", static_cast<Engine*>(engine)->name.c_str());
    return 0;
}

void* installTransport(void* engine, const char* name, void** /*arguments*/) {
    auto* const own = static_cast<Engine*>(engine);
    const std::lock_guard lock(world().mutex);
    if (own->does("no-port") || (own->does("port-taken") && world().nextPort % 3 != 0)) {
        throw std::runtime_error("bind: Address already in use");
    }
    own->installed = std::strcmp(name, "tcp") == 0;
    return own->installed ? engine : nullptr;
}

int32_t openSegment(void* engine, const char* name) {
    const std::lock_guard lock(world().mutex);
    if (named(name) == nullptr) {
        return -1;
    }
    auto* const own = static_cast<Engine*>(engine);
    own->segments.emplace_back(name);
    return static_cast<int32_t>(own->segments.size() - 1);
}

int closeSegment(void* /*engine*/, int32_t /*segment*/) {
    return 0;
}

int registerLocalMemory(
    void* engine, void* address, size_t size, const char* /*location*/, int /*remote*/) {
    const std::lock_guard lock(world().mutex);
    auto* const own = static_cast<Engine*>(engine);
    const auto begin = reinterpret_cast<uint64_t>(address);
    if (size == 0 || (own->does("refuse-memory") && size == 666)) {
        return -1;
    }
    for (const auto& [from, to] : own->memory) {
        if (begin < to && from < begin + size) {
            return -7;
        }
    }
    own->memory[begin] = begin + size;
    return 0;
}

int unregisterLocalMemory(void* engine, void* address) {
    const std::lock_guard lock(world().mutex);
    const bool known =
        static_cast<Engine*>(engine)->memory.erase(reinterpret_cast<uint64_t>(address)) != 0;
    return known ? 0 : -3;
}

uint64_t allocateBatchID(void* /*engine*/, size_t /*size*/) {
    const std::lock_guard lock(world().mutex);
    world().batches[world().nextBatch];
    return world().nextBatch++;
}

int submitTransfer(void* engine, uint64_t batch, Request* requests, size_t count) {
    const std::lock_guard lock(world().mutex);
    const auto* const own = static_cast<Engine*>(engine);
    if (count > 1024) {
        return 2;
    }
    const size_t taken = own->does("refuse-batch") && count == 3 ? 1 : count;
    for (size_t i = 0; i < taken; ++i) {
        world().batches[batch].push_back(carryOut(*own, requests[i]));
    }
    return taken == count ? 0 : 1;
}

int getTransferStatus(void* /*engine*/, uint64_t batch, size_t task, Status* status) {
    const std::lock_guard lock(world().mutex);
    const std::vector<Status>& all = world().batches[batch];
    if (task >= all.size()) {
        return 1;
    }
    *status = all[task];
    return 0;
}

int freeBatchID(void* /*engine*/, uint64_t batch) {
    const std::lock_guard lock(world().mutex);
    return world().batches.erase(batch) == 1 ? 0 : 1;
}

}  // extern "C"
#pragma GCC visibility pop
