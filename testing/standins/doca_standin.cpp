// Stands in for DOCA (doca-common, doca-verbs, doca-gpunetio) and libibverbs in tests, with the
// published interface and an adapter made of a thread: it reads the rings, records and doorbells in
// the layout of a ConnectX, moves bytes between this process and others by cross-memory attach, and
// writes completions. It checks what is posted to the bit. The kernel of plugins/gpunetio runs here
// too, compiled for this host.
//
// Peers are found by their GID: process id and descriptor of a memory file in which that process
// keeps what it has registered and its queue pairs.
//
// Environment: DOCA_STANDIN_ADAPTERS="mlx5_0 mlx5_1" (that), DOCA_STANDIN_FAIL=SYMBOL (that call
// fails). For tests, by dlsym: docaStandinHold, docaStandinFigure. Any thread; one lock over all.
#include "doca_standin.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <sys/mman.h>

using namespace standin;

// NOLINTBEGIN(readability-identifier-naming): the names of DOCA

namespace {

bool failing(const char* symbol) {
    const char* const wanted = std::getenv("DOCA_STANDIN_FAIL");
    return wanted != nullptr && std::strcmp(wanted, symbol) == 0;
}

template <typename T>
T* as(void* object) {
    return static_cast<T*>(object);
}

std::vector<std::string> names() {
    const char* const wanted = std::getenv("DOCA_STANDIN_ADAPTERS");
    std::stringstream words(wanted == nullptr ? "mlx5_0 mlx5_1" : wanted);
    std::vector<std::string> all;
    for (std::string word; words >> word;) {
        all.push_back(word);
    }
    return all;
}

Pair* slotOf(uint32_t number) {
    for (Pair& one : table->pairs) {
        if (one.number == number) {
            return &one;
        }
    }
    return nullptr;
}

}  // namespace

#define CALL(symbol)                   \
    const std::lock_guard guard(lock); \
    begin();                           \
    if (failing(symbol)) {             \
        return kFailed;                \
    }

// --- libibverbs

API void** ibv_get_device_list(int* count) {
    const std::vector<std::string> all = names();
    void** const list = as<void*>(calloc(all.size() + 1, sizeof(void*)));
    for (size_t i = 0; i < all.size(); ++i) {
        static auto& kept = *new std::map<std::string, std::unique_ptr<std::string>>;
        const std::lock_guard guard(lock);
        auto& one = kept[all[i]];
        one = one != nullptr ? std::move(one) : std::make_unique<std::string>(all[i]);
        list[i] = one.get();
    }
    *count = static_cast<int>(all.size());
    return list;
}
API void ibv_free_device_list(void** list) {
    free(static_cast<void*>(list));
}
API const char* ibv_get_device_name(void* device) {
    return as<std::string>(device)->c_str();
}
API int ibv_query_gid(void* /*context*/, uint8_t port, int index, void* gid) {
    CALL("ibv_query_gid")
    gidOf(as<uint8_t>(gid));
    return port == 1 && index < 4 ? kOk : -1;
}
API int ibv_query_port(void* /*context*/, uint8_t port, void* attributes) {
    as<uint8_t>(attributes)[46] = 2;
    return port == 1 ? kOk : -1;
}
API void* ibv_reg_mr(void* pd, void* address, size_t length, int access) {
    const std::lock_guard guard(lock);
    begin();
    static uint32_t next_key = 0x100;
    for (size_t i = 0; i < kMost && access == 7 && !failing("ibv_reg_mr"); ++i) {
        Registered& slot = table->regions[i];
        if (slot.key == 0) {
            slot.address = reinterpret_cast<uint64_t>(address);
            slot.size = length;
            const uint32_t key = next_key++;
            slot.key.store(key, std::memory_order_release);
            return new Mr{nullptr, pd, address, length, 0, key, key, i};
        }
    }
    errno = ENOMEM;
    return nullptr;
}
API void* ibv_reg_dmabuf_mr(
    void* pd, uint64_t /*offset*/, size_t length, uint64_t address, int /*fd*/, int access) {
    return ibv_reg_mr(pd, reinterpret_cast<void*>(address), length, access);
}
API int ibv_dereg_mr(void* handle) {
    const std::lock_guard guard(lock);
    const std::unique_ptr<Mr> mr(as<Mr>(handle));
    table->regions[mr->slot].key = 0;
    return kOk;
}

// --- doca-common, doca-gpunetio

API const char* doca_error_get_descr(int error) {
    return error == kFailed ? "stand-in failure" : "unknown";
}
API int doca_dev_close(void* /*device*/) {
    return kOk;
}
API int doca_umem_gpu_create(
    void* /*gpu*/, void* /*device*/, void* address, size_t size, uint32_t flags, void** umem) {
    CALL("doca_umem_gpu_create")
    *umem = new Umem{as<char>(address)};
    return size % 4096 == 0 && flags == 15 ? kOk : kFailed;
}
API int doca_umem_destroy(void* umem) {
    delete as<Umem>(umem);
    return kOk;
}
API int doca_uar_create(void* /*device*/, int type, void** uar) {
    CALL("doca_uar_create")
    void* const page =
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *uar = new Uar{page};
    return type == 2 && page != MAP_FAILED ? kOk : kFailed;
}
API int doca_uar_destroy(void* uar) {
    munmap(as<Uar>(uar)->page, 4096);
    delete as<Uar>(uar);
    return kOk;
}
API int doca_gpu_create(const char* address, void** gpu) {
    CALL("doca_gpu_create")
    *gpu = new std::string(address);
    return kOk;
}
API int doca_gpu_destroy(void* gpu) {
    delete as<std::string>(gpu);
    return kOk;
}
API int doca_gpu_mem_alloc(
    void* /*gpu*/, size_t size, size_t alignment, int type, void** gpu_address, void** /*host*/) {
    CALL("doca_gpu_mem_alloc")
    *gpu_address = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    return type == 0 && *gpu_address != nullptr ? kOk : kFailed;
}
API int doca_gpu_mem_free(void* /*gpu*/, void* address) {
    free(address);
    return kOk;
}
API int doca_gpu_dmabuf_fd(void* /*gpu*/, void* /*address*/, size_t /*size*/, int* file) {
    *file = -1;
    return kFailed;
}

// --- doca-verbs

API int doca_verbs_bridge_verbs_context_create(void* device, uint32_t /*flags*/, void** context) {
    CALL("doca_verbs_bridge_verbs_context_create")
    *context = device;
    return kOk;
}
API int doca_verbs_context_destroy(void* /*context*/) {
    return kOk;
}
API int doca_verbs_pd_create(void* context, void** pd) {
    CALL("doca_verbs_pd_create")
    *pd = new Pd{context};
    return kOk;
}
API int doca_verbs_pd_destroy(void* pd) {
    delete as<Pd>(pd);
    return kOk;
}
API void* doca_verbs_bridge_verbs_pd_get_ibv_pd(void* pd) {
    return pd;
}
API int doca_rdma_bridge_open_dev_from_pd(void* pd, void** device) {
    *device = pd;
    return kOk;
}

#define ATTRIBUTES(type, prefix)                 \
    API int prefix##_create(void** made) {       \
        *made = new (type);                      \
        return kOk;                              \
    }                                            \
    API int prefix##_destroy(void* attributes) { \
        delete as<type>(attributes);             \
        return kOk;                              \
    }
#define TAKES(symbol, argument)                                \
    API int symbol(void* /*attributes*/, argument /*value*/) { \
        return kOk;                                            \
    }

ATTRIBUTES(CqAttributes, doca_verbs_cq_attr)
ATTRIBUTES(PairAttributes, doca_verbs_qp_init_attr)
ATTRIBUTES(Modification, doca_verbs_qp_attr)
TAKES(doca_verbs_cq_attr_set_external_datapath_en, uint8_t)
TAKES(doca_verbs_cq_attr_set_external_uar, void*)
TAKES(doca_verbs_cq_attr_set_cq_overrun, int)
API int doca_verbs_cq_attr_set_external_umem(void* attributes, void* umem, uint64_t offset) {
    as<CqAttributes>(attributes)->ring = as<Umem>(umem);
    return offset == 0 ? kOk : kFailed;
}
API int doca_verbs_cq_attr_set_cq_size(void* attributes, uint32_t size) {
    as<CqAttributes>(attributes)->size = size;
    return kOk;
}
API int doca_verbs_cq_create(void* /*context*/, void* attributes, void** cq) {
    CALL("doca_verbs_cq_create")
    auto made = std::make_unique<Cq>();
    made->ring = as<CqAttributes>(attributes)->ring->address;
    made->size = as<CqAttributes>(attributes)->size;
    *cq = made.release();
    return kOk;
}
API int doca_verbs_cq_destroy(void* cq) {
    delete as<Cq>(cq);
    return kOk;
}
TAKES(doca_verbs_qp_init_attr_set_external_datapath_en, uint8_t)
TAKES(doca_verbs_qp_init_attr_set_pd, void*)
TAKES(doca_verbs_qp_init_attr_set_qp_type, uint32_t)
TAKES(doca_verbs_qp_init_attr_set_send_max_sges, uint32_t)
TAKES(doca_verbs_qp_init_attr_set_receive_max_sges, uint32_t)
TAKES(doca_verbs_qp_init_attr_set_receive_cq, void*)
API int doca_verbs_qp_init_attr_set_external_umem(void* attributes, void* umem, uint64_t offset) {
    as<PairAttributes>(attributes)->ring = as<Umem>(umem);
    return offset == 0 ? kOk : kFailed;
}
API int doca_verbs_qp_init_attr_set_external_dbr_umem(void* attributes,
                                                      void* umem,
                                                      uint64_t offset) {
    as<PairAttributes>(attributes)->record = as<Umem>(umem);
    return offset == 0 ? kOk : kFailed;
}
API int doca_verbs_qp_init_attr_set_external_uar(void* attributes, void* uar) {
    as<PairAttributes>(attributes)->uar = as<Uar>(uar);
    return kOk;
}
API int doca_verbs_qp_init_attr_set_sq_wr(void* attributes, uint32_t count) {
    as<PairAttributes>(attributes)->sends = count;
    return kOk;
}
API int doca_verbs_qp_init_attr_set_rq_wr(void* attributes, uint32_t count) {
    as<PairAttributes>(attributes)->receives = count;
    return kOk;
}
API int doca_verbs_qp_init_attr_set_send_cq(void* attributes, void* cq) {
    as<PairAttributes>(attributes)->cq = as<Cq>(cq);
    return kOk;
}
API int doca_verbs_qp_create(void* /*context*/, void* attributes, void** pair) {
    CALL("doca_verbs_qp_create")
    Pair* const slot = slotOf(0);
    if (slot == nullptr) {
        return kFailed;
    }
    auto* const made = new Qp;
    made->made = *as<PairAttributes>(attributes);
    made->number = nextNumber = (nextNumber + 1) & 0xffffff;
    slot->number = made->number;
    pairs[made->number] = made;
    *pair = made;
    return kOk;
}
API int doca_verbs_qp_destroy(void* pair) {
    const std::lock_guard guard(lock);
    if (Pair* const slot = slotOf(as<Qp>(pair)->number); slot != nullptr) {
        slot->number = 0;
        slot->peer = 0;
    }
    pairs.erase(as<Qp>(pair)->number);
    delete as<Qp>(pair);
    return kOk;
}
API uint32_t doca_verbs_qp_get_qpn(const void* pair) {
    return static_cast<const Qp*>(pair)->number;
}
API void* doca_verbs_qp_get_uar_addr(const void* pair) {
    return static_cast<const Qp*>(pair)->made.uar->page;
}
API void doca_verbs_qp_get_wq(const void* pair,
                              void** sends,
                              uint32_t* send_count,
                              void** receives,
                              uint32_t* receive_count,
                              uint32_t* receive_size) {
    const Qp& one = *static_cast<const Qp*>(pair);
    *receives = one.made.ring->address;
    *sends = one.sends();
    *send_count = one.made.sends;
    *receive_count = one.made.receives;
    *receive_size = 16;
}
TAKES(doca_verbs_qp_attr_set_path_mtu, int)
TAKES(doca_verbs_qp_attr_set_rq_psn, uint32_t)
TAKES(doca_verbs_qp_attr_set_sq_psn, uint32_t)
TAKES(doca_verbs_qp_attr_set_allow_remote_write, int)
TAKES(doca_verbs_qp_attr_set_allow_remote_read, int)
TAKES(doca_verbs_qp_attr_set_atomic_mode, int)
TAKES(doca_verbs_qp_attr_set_port_num, uint16_t)
TAKES(doca_verbs_qp_attr_set_ack_timeout, uint16_t)
TAKES(doca_verbs_qp_attr_set_retry_cnt, uint16_t)
TAKES(doca_verbs_qp_attr_set_rnr_retry, uint16_t)
TAKES(doca_verbs_qp_attr_set_min_rnr_timer, uint16_t)
API int doca_verbs_qp_attr_set_next_state(void* attributes, int state) {
    as<Modification>(attributes)->state = state;
    return kOk;
}
API int doca_verbs_qp_attr_set_dest_qp_num(void* attributes, uint32_t number) {
    as<Modification>(attributes)->peer = number;
    return kOk;
}
API int doca_verbs_qp_attr_set_ah_attr(void* attributes, void* address) {
    as<Modification>(attributes)->address = *as<Ah>(address);
    return kOk;
}
// The states come one after the other, each with what it needs.
API int doca_verbs_qp_modify(void* handle, void* attributes, int mask) {
    CALL("doca_verbs_qp_modify")
    constexpr int kNeeds[] = {0, 0x8037, 0x45a8, 0x3a20};
    Qp& pair = *as<Qp>(handle);
    const Modification& wanted = *as<Modification>(attributes);
    if (wanted.state == BROKEN) {
        pair.state = BROKEN;
        return kOk;
    }
    if (wanted.state != static_cast<int>(pair.state) + 1 || mask != kNeeds[wanted.state]) {
        std::fprintf(stderr, "doca_standin: state %u to %d with 0x%x\n", pair.state, wanted.state,
                     static_cast<unsigned>(mask));
        return kFailed;
    }
    pair.state = static_cast<State>(wanted.state);
    if (pair.state == RECEIVES) {
        pair.peer = wanted.peer;
        pair.address = wanted.address;
        slotOf(pair.number)->peer = wanted.peer;
    }
    return kOk;
}
API int doca_verbs_ah_attr_create(void* /*context*/, void** made) {
    *made = new Ah;
    return kOk;
}
API int doca_verbs_ah_attr_destroy(void* address) {
    delete as<Ah>(address);
    return kOk;
}
struct GidValue {
    uint8_t raw[16];
};
API int doca_verbs_ah_attr_set_gid(void* address, GidValue gid) {
    std::memcpy(as<Ah>(address)->gid, gid.raw, sizeof(gid.raw));
    return kOk;
}
TAKES(doca_verbs_ah_attr_set_addr_type, int)
TAKES(doca_verbs_ah_attr_set_dlid, uint32_t)
TAKES(doca_verbs_ah_attr_set_sgid_index, uint8_t)
TAKES(doca_verbs_ah_attr_set_hop_limit, uint8_t)

// --- for tests

// Requests wait (1), or go on (0).
API void docaStandinHold(int hold) {
    held = hold != 0;
}
// 0: bytes moved, 1: queue pairs, 2: registrations.
API uint64_t docaStandinFigure(int which) {
    const std::lock_guard guard(lock);
    uint64_t registered = 0;
    for (size_t i = 0; table != nullptr && i < kMost; ++i) {
        registered += table->regions[i].key != 0 ? 1 : 0;
    }
    return which == 0 ? moved.load() : which == 1 ? pairs.size() : registered;
}
// NOLINTEND(readability-identifier-naming)
