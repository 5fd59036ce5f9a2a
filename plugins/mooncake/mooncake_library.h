// Mooncake's transfer engine by its C interface (transfer_engine_c.h), opened at run time: found,
// never linked. One for each path, never closed. Threads: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "nixl/error.h"

namespace nixl::mooncake {

// As in the header. Some versions have no `file`, and leave its four bytes unused.
struct EngineRequest {
    int32_t opcode = 0;  // kEngineRead, kEngineWrite
    void* source = nullptr;
    int32_t target = 0;
    uint32_t file = 0;
    uint64_t offset = 0;  // an address at the target
    uint64_t length = 0;
};
static_assert(sizeof(EngineRequest) == 40);

struct EngineStatus {
    int32_t state = 0;
    uint64_t bytes = 0;
};
static_assert(sizeof(EngineStatus) == 16);

inline constexpr int32_t kEngineRead = 0;
inline constexpr int32_t kEngineWrite = 1;
// States: 0 waiting and 1 pending go on, the others are ends.
inline constexpr int32_t kEnginePending = 1;
inline constexpr int32_t kEngineCompleted = 4;
inline constexpr uint64_t kNoBatch = UINT64_MAX;

struct MooncakeLibrary {
    std::string path;
    bool gpus = false;  // it was built for CUDA

    void* (*create)(const char* metadata,
                    const char* name,
                    const char* host,
                    uint64_t port,
                    int discover) = nullptr;
    void (*destroy)(void* engine) = nullptr;
    int (*localName)(void* engine, char* text, size_t size) = nullptr;
    void* (*installTransport)(void* engine, const char* name, void** arguments) = nullptr;
    int32_t (*openSegment)(void* engine, const char* name) = nullptr;
    int32_t (*openSegmentAnew)(void* engine, const char* name) = nullptr;  // null in old ones
    int (*closeSegment)(void* engine, int32_t segment) = nullptr;
    int (*registerMemory)(
        void* engine, void* address, size_t size, const char* location, int remote) = nullptr;
    int (*unregisterMemory)(void* engine, void* address) = nullptr;
    uint64_t (*allocateBatch)(void* engine, size_t size) = nullptr;
    int (*submit)(void* engine, uint64_t batch, EngineRequest* requests, size_t count) = nullptr;
    int (*status)(void* engine, uint64_t batch, size_t task, EngineStatus* status) = nullptr;
    int (*freeBatch)(void* engine, uint64_t batch) = nullptr;
};

// Opens what NIXL_MOONCAKE_LIBRARY names (a file or its folder; then nothing else is tried), else
// the system's libtransfer_engine.so. NOT_FOUND says what was tried and what to install, MISMATCH
// what is wrong with the one found. Tried again after a failure.
Result<const MooncakeLibrary*> openMooncake();

// "-7, the memory overlaps what is registered": a code of the engine for people.
std::string engineError(int code);

}  // namespace nixl::mooncake
