/* Stands in for libcuda.so.1 and libnvidia-ml.so.1 in tests of the benchmarks: what the backend's
 * own stand-in has, and the calls that allocate GPU memory, copy it and tell how busy the GPU is.
 */
#include <stdlib.h>

#include "../../plugins/posix/cuda_standin.c"

#define GRAIN ((size_t)1 << 21)

typedef struct {
    int type, handle_types, location_type, location_id;
    void* windows;
    unsigned char compression, rdma;
    unsigned short usage;
    unsigned char reserved[4];
} Allocation;
typedef struct {
    int location_type, location_id, flags;
} Access;

API int cuMemAlloc_v2(uint64_t* address, size_t size) {
    *address = (uint64_t)malloc(size) | GPU_BIT;
    return 0;
}
API int cuMemFree_v2(uint64_t address) {
    free(host(address));
    return 0;
}
API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t size) {
    return cuMemcpyHtoDAsync_v2(to, from, size, (void*)2);
}
API int cuCtxSynchronize(void) {
    return 0;
}
API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t size) {
    return cuMemcpyDtoHAsync_v2(to, from, size, (void*)2);
}

/* Virtual memory: an address is reserved, memory made, mapped, made accessible; in this order. */
static int mapped, accessible;

API int cuMemGetAllocationGranularity(size_t* grain, const Allocation* kind, int option) {
    *grain = GRAIN;
    return kind->type == 1 && kind->location_type == 1 && kind->location_id == 0 && option == 0 ? 0
                                                                                                : 1;
}
API int cuMemAddressReserve(
    uint64_t* address, size_t size, size_t alignment, uint64_t hint, uint64_t flags) {
    if (size == 0 || size % GRAIN != 0 || alignment != 0 || hint != 0 || flags != 0) {
        return 1;
    }
    *address = (uint64_t)aligned_alloc(GRAIN, size) | GPU_BIT;
    return 0;
}
API int cuMemCreate(uint64_t* handle, size_t size, const Allocation* kind, uint64_t flags) {
    *handle = 77;
    return size % GRAIN == 0 && kind->rdma == 0 && flags == 0 ? 0 : 801; /* no RDMA here */
}
API int cuMemMap(uint64_t address, size_t size, size_t offset, uint64_t handle, uint64_t flags) {
    mapped = (address & GPU_BIT) != 0 && size % GRAIN == 0 && offset == 0 && flags == 0;
    return handle == 77 && mapped ? 0 : 1;
}
API int cuMemRelease(uint64_t handle) {
    return handle == 77 ? 0 : 1;
}
API int cuMemSetAccess(uint64_t address, size_t size, const Access* access, size_t count) {
    accessible = access->location_type == 1 && access->flags == 3 && count == 1;
    return (address & GPU_BIT) != 0 && size % GRAIN == 0 && mapped && accessible ? 0 : 1;
}
API int cuMemUnmap(uint64_t address, size_t size) {
    return (address & GPU_BIT) != 0 && size % GRAIN == 0 && accessible ? 0 : 1;
}
API int cuMemAddressFree(uint64_t address, size_t size) {
    free(host(address));
    return size % GRAIN == 0 ? 0 : 1;
}

typedef struct {
    unsigned gpu, memory;
} Utilization;

API int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 1;
    return 0;
}
API int nvmlDeviceGetName(void* device, char* name, unsigned size) {
    strncpy(name, "Stand-in 9000", size);
    return device == (void*)5 ? 0 : 2;
}
API int nvmlSystemGetDriverVersion(char* version, unsigned size) {
    strncpy(version, "1.2.3", size);
    return 0;
}
API int nvmlInit_v2(void) {
    return 0;
}
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
    *device = (void*)5;
    return index == 0 ? 0 : 2;
}
API int nvmlDeviceGetUtilizationRates(void* device, Utilization* shares) {
    shares->gpu = 42;
    shares->memory = 7;
    return device == (void*)5 ? 0 : 2;
}
