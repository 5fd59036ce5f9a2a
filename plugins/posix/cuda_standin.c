/* Stands in for libcuda.so.1 in tests: one GPU, whose addresses are host addresses with bit 62 set,
 * so that touching them directly crashes. Bit 61 makes a copy fail. No state,
 * any thread. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define GPU_BIT (1ULL << 62)
#define BROKEN_BIT (1ULL << 61)

static void* host(uint64_t address) { return (void*)(address & ~GPU_BIT); }

/* With NIXL_CUDA_STANDIN_WAITS="OUT IN" says on the descriptor OUT that it was called, and goes on
 * when there is something on IN. */
API int cuInit(unsigned flags) {
    const char* waits = getenv("NIXL_CUDA_STANDIN_WAITS");
    if (waits != NULL) {
        char* next = NULL;
        const int out = (int)strtol(waits, &next, 10);
        char byte = 0;
        if (write(out, &byte, 1) != 1 || read((int)strtol(next, NULL, 10), &byte, 1) != 1) {
            return 999;
        }
    }
    return flags == 0 ? 0 : 1;
}
API int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? 0 : 101;
}
API int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = (void*)8;
    return device == 0 ? 0 : 101;
}
API int cuCtxSetCurrent(void* context) { return context == (void*)8 ? 0 : 201; }
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* stream) {
    if ((from & GPU_BIT) == 0 || (from & BROKEN_BIT) != 0 || stream != (void*)2) {
        return 700;
    }
    memcpy(to, host(from), size);
    return 0;
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* stream) {
    if ((to & GPU_BIT) == 0 || (to & BROKEN_BIT) != 0 || stream != (void*)2) {
        return 700;
    }
    memcpy(host(to), from, size);
    return 0;
}
API int cuStreamSynchronize(void* stream) { return stream == (void*)2 ? 0 : 400; }
API int cuMemHostRegister_v2(void* address, size_t size, unsigned flags) {
    return address != NULL && size > 0 && flags == 1 ? 0 : 1;
}
API int cuMemHostUnregister(void* address) { return address != NULL ? 0 : 1; }
API int cuGetErrorString(int error, const char** text) {
    *text = error == 700 ? "an illegal memory access was encountered" : "invalid device ordinal";
    return 0;
}
