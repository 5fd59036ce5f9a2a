// The GUSLI client as the table of client_abi.h. Compiled with the header of the installed client
// (gusli_client_api.hpp) and linked with its library; the README of the backend has the command.
//
// Threads: as client_abi.h says.
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include <gusli_client_api.hpp>

#include "../client_abi.h"

namespace {

gusli::global_clnt_context* g_client = nullptr;  // a process has one
FILE* g_log = nullptr;

gusli::backend_bdev_id idOf(const char* id) {
    gusli::backend_bdev_id named;
    named.set_from(id);
    return named;
}

std::vector<gusli::io_buffer_t> rangeOf(void* memory, uint64_t bytes) {
    gusli::io_buffer_t range{};
    range.ptr = memory;
    range.byte_len = bytes;
    return {range};
}

int start(const char* devices, const char* name, uint32_t requests, const char* log) {
    if (g_client != nullptr) {
        return NIXL_GUSLI_OPEN;
    }
    g_log = fopen(log, "ae");
    gusli::global_clnt_context::init_params wanted;
    wanted.log = g_log != nullptr ? g_log : stderr;
    wanted.config_file = devices;
    wanted.client_name = name;
    wanted.max_num_simultaneous_requests = requests;
    int code = NIXL_GUSLI_OK;
    try {
        g_client = new gusli::global_clnt_context(wanted);
    } catch (const gusli::clnt_init_exception& failure) {
        code = failure.code() > 0 ? NIXL_GUSLI_OPEN : failure.code();
    } catch (...) {
        code = NIXL_GUSLI_INTERNAL;
    }
    if (g_client == nullptr && g_log != nullptr) {
        fclose(g_log);
        g_log = nullptr;
    }
    return code;
}

int stop() {
    delete g_client;
    g_client = nullptr;
    if (g_log != nullptr) {
        fclose(g_log);
        g_log = nullptr;
    }
    return NIXL_GUSLI_OK;
}

const char* version() {
    return g_client->get_metadata_json();
}

int connect(const char* id, NixlGusliDevice* device) {
    const gusli::backend_bdev_id named = idOf(id);
    if (const int code = g_client->bdev_connect(named); code != gusli::C_OK) {
        return code;
    }
    gusli::bdev_info info{};
    if (const int code = g_client->bdev_get_info(named, info); code != gusli::C_OK) {
        static_cast<void>(g_client->bdev_disconnect(named));
        return code;
    }
    device->descriptor = info.bdev_descriptor;
    device->blockSize = info.block_size;
    device->blocks = info.num_total_blocks;
    device->requests = info.num_max_inflight_io;
    memset(device->name, 0, sizeof(device->name));
    memcpy(device->name, info.name, strnlen(info.name, sizeof(device->name) - 1));
    return NIXL_GUSLI_OK;
}

int disconnect(const char* id) {
    return g_client->bdev_disconnect(idOf(id));
}

int share(const char* id, void* memory, uint64_t bytes) {
    return g_client->bdev_bufs_register(idOf(id), rangeOf(memory, bytes));
}

int unshare(const char* id, void* memory, uint64_t bytes) {
    return g_client->bdev_bufs_unregist(idOf(id), rangeOf(memory, bytes));
}

void* makeRequest() {
    return new (std::nothrow) gusli::io_request;
}

void freeRequest(void* request) {
    delete static_cast<gusli::io_request*>(request);
}

void submit(void* request, const NixlGusliIo* io) {
    auto& wanted = *static_cast<gusli::io_request*>(request);
    wanted.params.init_1_rng(io->write != 0 ? gusli::G_WRITE : gusli::G_READ, io->descriptor,
                             io->offset, io->length, io->memory);
    wanted.params.set_completion(io->context, io->ended);
    wanted.submit_io();
}

int result(void* request) {
    auto& wanted = *static_cast<gusli::io_request*>(request);
    const int code = wanted.get_error();
    if (code != NIXL_GUSLI_IN_FLIGHT) {
        wanted.done();
    }
    return code;
}

constexpr NixlGusliClient kTable = {
    NIXL_GUSLI_ABI, sizeof(NixlGusliClient),
    &start,         &stop,
    &version,       &connect,
    &disconnect,    &share,
    &unshare,       &makeRequest,
    &freeRequest,   &submit,
    &result,
};

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): NIXL_GUSLI_ENTRY
extern "C" __attribute__((visibility("default"))) const NixlGusliClient* nixl_gusli_client() {
    return &kTable;
}
