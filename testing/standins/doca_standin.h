// What the files of the stand-in for DOCA share; see doca_standin.cpp.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include <sys/types.h>

#define API extern "C" __attribute__((visibility("default")))

namespace standin {

constexpr uint64_t kGpuBit = 1ULL << 62;
constexpr int kOk = 0;
constexpr int kFailed = 5;
constexpr size_t kMost = 4096;

enum State : uint32_t { RESET, INIT, RECEIVES, SENDS, BROKEN };

struct Registered {
    std::atomic<uint32_t> key;  // 0: none
    uint64_t address;
    uint64_t size;
};
struct Pair {
    std::atomic<uint32_t> number;  // 0: none
    uint32_t peer;
};
// What other processes see.
struct Table {
    Registered regions[kMost];
    Pair pairs[kMost];
};

struct Umem {
    char* address;
};
struct Uar {
    void* page;
};
struct Cq {
    char* ring = nullptr;
    uint32_t size = 0;
    uint64_t next = 0;
};
struct Ah {
    uint8_t gid[16] = {};
};
struct CqAttributes {
    Umem* ring = nullptr;
    uint32_t size = 0;
};
struct PairAttributes {
    Umem* ring = nullptr;
    Umem* record = nullptr;
    Uar* uar = nullptr;
    Cq* cq = nullptr;
    uint32_t sends = 0;
    uint32_t receives = 0;
};
struct Modification {
    int state = 0;
    uint32_t peer = 0;
    Ah address;
};
struct Qp {
    PairAttributes made;
    uint32_t number = 0;
    State state = RESET;
    uint32_t peer = 0;
    Ah address;
    uint64_t done = 0;  // requests taken
    uint64_t rung = 0;  // what the doorbell had last
    char* sends() const { return made.ring->address + made.receives * 16; }
};
// The beginning of struct ibv_mr.
struct Mr {
    void* context;
    void* pd;
    void* address;
    size_t length;
    uint32_t handle;
    uint32_t localKey;
    uint32_t remoteKey;
    size_t slot;
};
struct Pd {
    void* context;  // as struct ibv_pd begins
};

extern std::mutex lock;  // of all that follows
extern pid_t owner;
extern int tableFile;
extern Table* table;
extern uint32_t nextNumber;
extern std::map<uint32_t, Qp*>& pairs;
extern std::atomic<bool> held;
extern std::atomic<uint64_t> moved;

// A forked child starts with nothing.
void begin();
void gidOf(uint8_t* raw);

}  // namespace standin
