// The UCX library, opened at run time: found, never linked. One per process, never closed.
// Threads: any.
#pragma once

#include <string>
#include <vector>

#include <ucp/api/ucp.h>

#include "nixl/error.h"

namespace nixl::ucx {

// The functions used, with the types of UCX's own header.
struct UcxLibrary {
    std::string path;     // of libucp
    std::string version;  // "1.13.1"

    decltype(&ucp_get_version_string) getVersionString = nullptr;
    decltype(&ucp_config_read) configRead = nullptr;
    decltype(&ucp_config_modify) configModify = nullptr;
    decltype(&ucp_config_release) configRelease = nullptr;
    decltype(&ucp_init_version) initVersion = nullptr;
    decltype(&ucp_cleanup) cleanup = nullptr;
    decltype(&ucp_worker_create) workerCreate = nullptr;
    decltype(&ucp_worker_destroy) workerDestroy = nullptr;
    decltype(&ucp_worker_get_address) workerGetAddress = nullptr;
    decltype(&ucp_worker_release_address) workerReleaseAddress = nullptr;
    decltype(&ucp_worker_progress) workerProgress = nullptr;
    decltype(&ucp_worker_get_efd) workerGetEfd = nullptr;
    decltype(&ucp_worker_arm) workerArm = nullptr;
    decltype(&ucp_ep_create) epCreate = nullptr;
    decltype(&ucp_ep_close_nbx) epCloseNbx = nullptr;
    decltype(&ucp_ep_flush_nbx) epFlushNbx = nullptr;
    decltype(&ucp_ep_rkey_unpack) epRkeyUnpack = nullptr;
    decltype(&ucp_rkey_destroy) rkeyDestroy = nullptr;
    decltype(&ucp_context_query) contextQuery = nullptr;
    decltype(&ucp_mem_map) memMap = nullptr;
    decltype(&ucp_mem_unmap) memUnmap = nullptr;
    decltype(&ucp_rkey_pack) rkeyPack = nullptr;
    decltype(&ucp_rkey_buffer_release) rkeyBufferRelease = nullptr;
    decltype(&ucp_put_nbx) putNbx = nullptr;
    decltype(&ucp_get_nbx) getNbx = nullptr;
    decltype(&ucp_request_check_status) requestCheckStatus = nullptr;
    decltype(&ucp_request_free) requestFree = nullptr;
    decltype(&ucs_status_string) statusString = nullptr;
};

// Opens it in this order: NIXL_UCX_LIBRARY, the PyPI package beside the one this plugin is in, the
// system. NOT_FOUND names every path tried and what to install. Tried again after a failure.
Result<const UcxLibrary*> openUcx();

// Where the PyPI package is: <site-packages>/libucx/lib, with this plugin somewhere below
// <site-packages>/nixl.
std::vector<std::string> ucxPackageFolders();

}  // namespace nixl::ucx
