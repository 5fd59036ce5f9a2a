// The adapter of the stand-in for DOCA: a thread that reads rings and doorbells, moves bytes and
// writes completions; and the kernel of plugins/gpunetio, compiled for this host.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include <arpa/inet.h>
#include <endian.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "doca_standin.h"

// The kernel, by one thread.
#define GPUNETIO_DEVICE
namespace {
template <typename T>
T* gpunetioAt(uint64_t address) {
    return reinterpret_cast<T*>(address & ~standin::kGpuBit);
}
unsigned gpunetioThread() {
    return 0;
}
unsigned gpunetioThreads() {
    return 1;
}
void gpunetioBarrier() {
    sched_yield();
}
void gpunetioFence() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
}
}  // namespace
#include "queue_kernel.h"

API void nixlGpunetioMove(nixl::gpunetio::Job* job) {
    uint64_t shared[2];
    nixl::gpunetio::move(job, shared);
}

namespace standin {

// Never destroyed: the adapter's thread lives to the end of the process.
std::mutex lock;
pid_t owner = 0;
int tableFile = -1;
Table* table = nullptr;
uint32_t nextNumber = 0;
std::map<uint32_t, Qp*>& pairs = *new std::map<uint32_t, Qp*>;
std::atomic<bool> held{false};
std::atomic<uint64_t> moved{0};

namespace {

auto& peers = *new std::map<std::string, Table*>;

// The table of another process; null where it has ended.
Table* peerTable(const uint8_t* gid, pid_t& process) {
    uint32_t parts[4];
    std::memcpy(parts, gid, sizeof(parts));
    process = static_cast<pid_t>(parts[1]);
    if (process == owner) {
        return table;
    }
    const std::string path =
        "/proc/" + std::to_string(parts[1]) + "/fd/" + std::to_string(parts[2]);
    if (access(path.c_str(), F_OK) != 0) {
        return nullptr;
    }
    Table*& known = peers[path];
    if (known == nullptr) {
        const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        void* const mapped = mmap(nullptr, sizeof(Table), PROT_READ, MAP_SHARED, file, 0);
        close(file);
        known = mapped == MAP_FAILED ? nullptr : static_cast<Table*>(mapped);
    }
    return known;
}

const Registered* regionOf(const Table& of, uint32_t key, uint64_t address, uint64_t size) {
    for (const Registered& one : of.regions) {
        if (one.key.load(std::memory_order_acquire) == key) {
            return address >= one.address && size <= one.size &&
                           address - one.address <= one.size - size
                       ? &one
                       : nullptr;
        }
    }
    return nullptr;
}

// One request; the syndrome of its completion.
uint8_t execute(const Qp& pair, uint64_t index, const char* request) {
    uint32_t words[12];
    uint64_t longs[6];
    std::memcpy(words, request, sizeof(words));
    std::memcpy(longs, request, sizeof(longs));
    const uint32_t head = ntohl(words[0]);
    const uint8_t opcode = head & 0xff;
    if ((head >> 8 & 0xffff) != (index & 0xffff) || head >> 24 != 0 ||
        ntohl(words[1]) != (pair.number << 8 | 3) || words[2] != htonl(8) || words[3] != 0 ||
        words[7] != 0 || (opcode != 0x08 && opcode != 0x10)) {
        std::fprintf(stderr, "doca_standin: request %llu is malformed\n",
                     static_cast<unsigned long long>(index));
        return 0x02;
    }
    const uint64_t remote = be64toh(longs[2]);
    const uint32_t remote_key = ntohl(words[6]);
    const uint32_t size = ntohl(words[8]);
    const uint32_t local_key = ntohl(words[9]);
    const uint64_t local = be64toh(longs[5]);
    if (regionOf(*table, local_key, local, size) == nullptr) {
        return 0x04;  // local protection
    }
    pid_t process = 0;
    const Table* const far = peerTable(pair.address.gid, process);
    bool connected = false;
    for (size_t i = 0; far != nullptr && i < kMost && !connected; ++i) {
        connected = far->pairs[i].number == pair.peer && far->pairs[i].peer == pair.number;
    }
    if (!connected) {
        return 0x15;  // nobody answers
    }
    if (regionOf(*far, remote_key, remote, size) == nullptr) {
        return 0x13;  // remote access
    }
    char* const here = reinterpret_cast<char*>(local & ~kGpuBit);
    char* const there = reinterpret_cast<char*>(remote & ~kGpuBit);
    moved += size;
    if (process == owner) {
        opcode == 0x08 ? std::memmove(there, here, size) : std::memmove(here, there, size);
        return 0;
    }
    for (size_t at = 0; at < size;) {
        const iovec near_part{here + at, size - at};
        const iovec far_part{there + at, size - at};
        const ssize_t got = opcode == 0x08
                                ? process_vm_writev(process, &near_part, 1, &far_part, 1, 0)
                                : process_vm_readv(process, &near_part, 1, &far_part, 1, 0);
        if (got <= 0) {
            return 0x15;
        }
        at += static_cast<size_t>(got);
    }
    return 0;
}

void complete(Cq& cq, uint64_t request, uint8_t syndrome) {
    auto* const at = reinterpret_cast<volatile uint8_t*>(cq.ring) + (cq.next % cq.size) * 64;
    at[54] = syndrome == 0 ? 0 : 0x5a;
    at[55] = syndrome;
    at[60] = static_cast<uint8_t>(request >> 8);
    at[61] = static_cast<uint8_t>(request);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const uint8_t opcode = syndrome == 0 ? 0 : 0xd;
    at[63] = static_cast<uint8_t>(opcode << 4 | ((cq.next & cq.size) != 0 ? 1 : 0));
    ++cq.next;
}

bool serve(Qp& pair) {
    const uint64_t rung = *static_cast<volatile uint64_t*>(pair.made.uar->page);
    const uint32_t record =
        ntohl(*reinterpret_cast<volatile uint32_t*>(pair.made.record->address + 4)) & 0xffff;
    if ((rung == pair.rung && pair.state != BROKEN) || record == (pair.done & 0xffff)) {
        return false;
    }
    pair.rung = rung;
    while ((pair.done & 0xffff) != record) {
        const char* const request = pair.sends() + (pair.done % pair.made.sends) * 64;
        const uint8_t syndrome =
            pair.state == SENDS ? execute(pair, pair.done, request) : uint8_t{0x05};
        pair.state = syndrome == 0 ? pair.state : BROKEN;
        complete(*pair.made.cq, pair.done++, syndrome);
    }
    return true;
}

void adapterLoop() {
    const pid_t process = getpid();
    while (owner == process) {
        bool busy = false;
        {
            const std::lock_guard guard(lock);
            for (const auto& [number, pair] : pairs) {
                if (!held || pair->state == BROKEN) {
                    busy = serve(*pair) || busy;
                }
            }
        }
        if (!busy) {
            const timespec moment{0, 50'000};
            nanosleep(&moment, nullptr);  // sleeps: nobody tells of a doorbell
        }
    }
}

}  // namespace

void begin() {
    if (owner == getpid()) {
        return;
    }
    // No child is to find the lock taken by a thread that it does not have.
    static const int ready =
        pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });
    if (ready != 0) {
        abort();
    }
    owner = getpid();
    pairs.clear();
    peers.clear();
    tableFile = memfd_create("adapter", MFD_CLOEXEC);
    if (tableFile < 0 || ftruncate(tableFile, sizeof(Table)) != 0) {
        abort();
    }
    table = static_cast<Table*>(
        mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE, MAP_SHARED, tableFile, 0));
    nextNumber = static_cast<uint32_t>(int64_t{getpid()} * 131 + time(nullptr)) & 0x7fff00;
    std::thread(adapterLoop).detach();
}

void gidOf(uint8_t* raw) {
    const uint32_t parts[4] = {0x444e5453, static_cast<uint32_t>(owner),
                               static_cast<uint32_t>(tableFile), 0};
    std::memcpy(raw, parts, sizeof(parts));
}

}  // namespace standin
