/* What the backend GUSLI asks of the GUSLI client, as a table of C functions. The client's own
 * interface is C++ whose types are laid out differently from version to version, so a small adapter
 * (adapter/gusli_adapter.cpp) is compiled with the header that belongs to the installed client and
 * gives this table. C, so that an adapter may be built by any compiler.
 *
 * Threads: requests of one device from one thread at a time; `ended` comes from the client's. */
#ifndef NIXL_GUSLI_CLIENT_ABI_H
#define NIXL_GUSLI_CLIENT_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NIXL_GUSLI_ABI 1
#define NIXL_GUSLI_ENTRY "nixl_gusli_client"

/* Results of start, connect, disconnect, share and unshare; others below 0 are the client's own. */
enum {
    NIXL_GUSLI_OK = 0,
    NIXL_GUSLI_NO_DEVICE = -100,
    NIXL_GUSLI_NO_RESPONSE = -99, /* of the server behind it */
    NIXL_GUSLI_OPEN = -98,        /* open already, or in use */
    NIXL_GUSLI_ARGUMENTS = -97
};

/* Results of a request. */
enum {
    NIXL_GUSLI_IN_FLIGHT = -1,
    NIXL_GUSLI_CANCELED = -10,
    NIXL_GUSLI_INTERNAL = -11,
    NIXL_GUSLI_LATER = -12, /* too many are in flight */
    NIXL_GUSLI_LOST = -13,  /* no use in trying again */
    NIXL_GUSLI_REFUSED = -14,
    NIXL_GUSLI_SERVER = -15 /* its device failed */
};

typedef struct NixlGusliDevice {
    int32_t descriptor;
    uint32_t blockSize; /* bytes */
    uint64_t blocks;
    uint32_t requests; /* in flight, at most */
    char name[32];
} NixlGusliDevice;

typedef struct NixlGusliIo {
    int32_t descriptor;
    int32_t write;
    uint64_t offset; /* bytes, as the length; both whole blocks */
    uint64_t length;
    void* memory;                 /* shared before */
    void (*ended)(void* context); /* once, also where it fails; maybe before submit returns */
    void* context;
} NixlGusliIo;

typedef struct NixlGusliClient {
    uint32_t abi;   /* NIXL_GUSLI_ABI */
    uint32_t bytes; /* of this struct */
    /* The client, of which a process has one. `devices` is the list in the client's own grammar,
     * `log` a path. */
    int (*start)(const char* devices, const char* name, uint32_t requests, const char* log);
    int (*stop)(void);
    const char* (*version)(void); /* the client's, when it has started */
    int (*connect)(const char* id, NixlGusliDevice* device);
    int (*disconnect)(const char* id);
    /* Memory of whole pages that this device's server may read and write. The client puts other
     * pages in its place: what it held is lost. */
    int (*share)(const char* id, void* memory, uint64_t bytes);
    int (*unshare)(const char* id, void* memory, uint64_t bytes);
    /* A request can be submitted again once it has ended and its result was taken. */
    void* (*makeRequest)(void);
    void (*freeRequest)(void* request);
    void (*submit)(void* request, const NixlGusliIo* io);
    int (*result)(void* request);
} NixlGusliClient;

typedef const NixlGusliClient* (*NixlGusliEntry)(void);

#ifdef __cplusplus
}
#endif

#endif
