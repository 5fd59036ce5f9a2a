// The functions of DOCA (doca-common, doca-verbs, doca-gpunetio) and of the verbs library that this
// backend calls, bound by name when the backend is made. Objects are opaque; the few fields that
// are read lie where the published interfaces have them. Threads: any.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "nixl/error.h"

namespace nixl::gpunetio {

using Gid = std::array<uint8_t, 16>;

// Passed by value, as DOCA has it.
struct DocaGid {
    uint8_t raw[16];
};

// X(type of the result, field, symbol, arguments)
#define NIXL_DOCA_FUNCTIONS(X)                                                                  \
    X(const char*, describe, "doca_error_get_descr", (int))                                     \
    X(int, closeDevice, "doca_dev_close", (void*))                                              \
    X(int, createUmem, "doca_umem_gpu_create", (void*, void*, void*, size_t, uint32_t, void**)) \
    X(int, destroyUmem, "doca_umem_destroy", (void*))                                           \
    X(int, createUar, "doca_uar_create", (void*, int, void**))                                  \
    X(int, destroyUar, "doca_uar_destroy", (void*))                                             \
    X(int, createGpu, "doca_gpu_create", (const char*, void**))                                 \
    X(int, destroyGpu, "doca_gpu_destroy", (void*))                                             \
    X(int, allocate, "doca_gpu_mem_alloc", (void*, size_t, size_t, int, void**, void**))        \
    X(int, release, "doca_gpu_mem_free", (void*, void*))                                        \
    X(int, dmabuf, "doca_gpu_dmabuf_fd", (void*, void*, size_t, int*))                          \
    X(int, openContext, "doca_verbs_bridge_verbs_context_create", (void*, uint32_t, void**))    \
    X(int, closeContext, "doca_verbs_context_destroy", (void*))                                 \
    X(int, createPd, "doca_verbs_pd_create", (void*, void**))                                   \
    X(int, destroyPd, "doca_verbs_pd_destroy", (void*))                                         \
    X(void*, ibvPd, "doca_verbs_bridge_verbs_pd_get_ibv_pd", (void*))                           \
    X(int, openDevice, "doca_rdma_bridge_open_dev_from_pd", (void*, void**))                    \
    X(int, cqAttr, "doca_verbs_cq_attr_create", (void**))                                       \
    X(int, cqAttrEnd, "doca_verbs_cq_attr_destroy", (void*))                                    \
    X(int, cqExternal, "doca_verbs_cq_attr_set_external_datapath_en", (void*, uint8_t))         \
    X(int, cqUmem, "doca_verbs_cq_attr_set_external_umem", (void*, void*, uint64_t))            \
    X(int, cqUar, "doca_verbs_cq_attr_set_external_uar", (void*, void*))                        \
    X(int, cqSize, "doca_verbs_cq_attr_set_cq_size", (void*, uint32_t))                         \
    X(int, cqOverrun, "doca_verbs_cq_attr_set_cq_overrun", (void*, int))                        \
    X(int, createCq, "doca_verbs_cq_create", (void*, void*, void**))                            \
    X(int, destroyCq, "doca_verbs_cq_destroy", (void*))                                         \
    X(int, qpInit, "doca_verbs_qp_init_attr_create", (void**))                                  \
    X(int, qpInitEnd, "doca_verbs_qp_init_attr_destroy", (void*))                               \
    X(int, qpExternal, "doca_verbs_qp_init_attr_set_external_datapath_en", (void*, uint8_t))    \
    X(int, qpUmem, "doca_verbs_qp_init_attr_set_external_umem", (void*, void*, uint64_t))       \
    X(int, qpRecord, "doca_verbs_qp_init_attr_set_external_dbr_umem", (void*, void*, uint64_t)) \
    X(int, qpUar, "doca_verbs_qp_init_attr_set_external_uar", (void*, void*))                   \
    X(int, qpPd, "doca_verbs_qp_init_attr_set_pd", (void*, void*))                              \
    X(int, qpSends, "doca_verbs_qp_init_attr_set_sq_wr", (void*, uint32_t))                     \
    X(int, qpReceives, "doca_verbs_qp_init_attr_set_rq_wr", (void*, uint32_t))                  \
    X(int, qpType, "doca_verbs_qp_init_attr_set_qp_type", (void*, uint32_t))                    \
    X(int, qpSendCq, "doca_verbs_qp_init_attr_set_send_cq", (void*, void*))                     \
    X(int, qpReceiveCq, "doca_verbs_qp_init_attr_set_receive_cq", (void*, void*))               \
    X(int, qpSendSges, "doca_verbs_qp_init_attr_set_send_max_sges", (void*, uint32_t))          \
    X(int, qpReceiveSges, "doca_verbs_qp_init_attr_set_receive_max_sges", (void*, uint32_t))    \
    X(int, createQp, "doca_verbs_qp_create", (void*, void*, void**))                            \
    X(int, destroyQp, "doca_verbs_qp_destroy", (void*))                                         \
    X(uint32_t, qpNumber, "doca_verbs_qp_get_qpn", (const void*))                               \
    X(void*, qpDoorbell, "doca_verbs_qp_get_uar_addr", (const void*))                           \
    X(void, qpRings, "doca_verbs_qp_get_wq",                                                    \
      (const void*, void**, uint32_t*, void**, uint32_t*, uint32_t*))                           \
    X(int, qpAttr, "doca_verbs_qp_attr_create", (void**))                                       \
    X(int, qpAttrEnd, "doca_verbs_qp_attr_destroy", (void*))                                    \
    X(int, setState, "doca_verbs_qp_attr_set_next_state", (void*, int))                         \
    X(int, setMtu, "doca_verbs_qp_attr_set_path_mtu", (void*, int))                             \
    X(int, setReceivePsn, "doca_verbs_qp_attr_set_rq_psn", (void*, uint32_t))                   \
    X(int, setSendPsn, "doca_verbs_qp_attr_set_sq_psn", (void*, uint32_t))                      \
    X(int, setPeerNumber, "doca_verbs_qp_attr_set_dest_qp_num", (void*, uint32_t))              \
    X(int, setRemoteWrite, "doca_verbs_qp_attr_set_allow_remote_write", (void*, int))           \
    X(int, setRemoteRead, "doca_verbs_qp_attr_set_allow_remote_read", (void*, int))             \
    X(int, setAtomic, "doca_verbs_qp_attr_set_atomic_mode", (void*, int))                       \
    X(int, setAddress, "doca_verbs_qp_attr_set_ah_attr", (void*, void*))                        \
    X(int, setPort, "doca_verbs_qp_attr_set_port_num", (void*, uint16_t))                       \
    X(int, setAckTimeout, "doca_verbs_qp_attr_set_ack_timeout", (void*, uint16_t))              \
    X(int, setRetries, "doca_verbs_qp_attr_set_retry_cnt", (void*, uint16_t))                   \
    X(int, setRnrRetries, "doca_verbs_qp_attr_set_rnr_retry", (void*, uint16_t))                \
    X(int, setRnrTimer, "doca_verbs_qp_attr_set_min_rnr_timer", (void*, uint16_t))              \
    X(int, modifyQp, "doca_verbs_qp_modify", (void*, void*, int))                               \
    X(int, ah, "doca_verbs_ah_attr_create", (void*, void**))                                    \
    X(int, ahEnd, "doca_verbs_ah_attr_destroy", (void*))                                        \
    X(int, ahGid, "doca_verbs_ah_attr_set_gid", (void*, DocaGid))                               \
    X(int, ahType, "doca_verbs_ah_attr_set_addr_type", (void*, int))                            \
    X(int, ahLid, "doca_verbs_ah_attr_set_dlid", (void*, uint32_t))                             \
    X(int, ahGidIndex, "doca_verbs_ah_attr_set_sgid_index", (void*, uint8_t))                   \
    X(int, ahHops, "doca_verbs_ah_attr_set_hop_limit", (void*, uint8_t))                        \
    X(void**, ibvDevices, "ibv_get_device_list", (int*))                                        \
    X(void, ibvFreeDevices, "ibv_free_device_list", (void**))                                   \
    X(const char*, ibvName, "ibv_get_device_name", (void*))                                     \
    X(int, ibvGid, "ibv_query_gid", (void*, uint8_t, int, void*))                               \
    X(int, ibvPort, "ibv_query_port", (void*, uint8_t, void*))                                  \
    X(void*, ibvRegister, "ibv_reg_mr", (void*, void*, size_t, int))                            \
    X(void*, ibvRegisterDmabuf, "ibv_reg_dmabuf_mr",                                            \
      (void*, uint64_t, size_t, uint64_t, int, int))                                            \
    X(int, ibvDeregister, "ibv_dereg_mr", (void*))

struct Doca {
#define NIXL_DOCA_FIELD(result, field, symbol, arguments) result(*field) arguments = nullptr;
    NIXL_DOCA_FUNCTIONS(NIXL_DOCA_FIELD)
#undef NIXL_DOCA_FIELD
    std::string path;  // where it was found

    // BACKEND with DOCA's own text where `error` is one.
    Status check(int error, const std::string& what) const;
};

// In NIXL_DOCA_LIBRARY (a folder with the libraries, or one file with all), else DOCA's own folder
// and the system's. NOT_FOUND names what is missing, and where it was looked for.
Result<const Doca*> openDoca();

}  // namespace nixl::gpunetio
