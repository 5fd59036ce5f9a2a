/* Kernels of the stand-in for libcuda.so.1: functions of a library of this host, each launch a
 * thread of its own. CUDA_STANDIN_KERNELS names the library; the image that is loaded is not looked
 * at. */
#include <dlfcn.h>

#include "cuda_driver.h"

typedef void (*Kernel)(void* argument);

struct Launch {
    Kernel kernel;
    void* argument;
};

static void* run(void* given) {
    const struct Launch launch = *(struct Launch*)given;
    free(given);
    launch.kernel(launch.argument);
    return NULL;
}

API int cuModuleLoadData(void** module, const void* image) {
    BEGIN("cuModuleLoadData")
    const char* path = getenv("CUDA_STANDIN_KERNELS");
    if (currentDevice() < 0) {
        END(INVALID_CONTEXT);
    }
    *module = image == NULL || path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    END(*module == NULL ? INVALID_VALUE : OK);
}
API int cuModuleGetFunction(void** function, void* module, const char* name) {
    BEGIN("cuModuleGetFunction")
    *function = dlsym(module, name);
    END(*function == NULL ? INVALID_HANDLE : OK);
}
/* With one argument, a pointer. */
API int cuLaunchKernel(void* function,
                       unsigned blocks_x,
                       unsigned blocks_y,
                       unsigned blocks_z,
                       unsigned threads_x,
                       unsigned threads_y,
                       unsigned threads_z,
                       unsigned shared,
                       void* stream,
                       void** arguments,
                       void** extra) {
    BEGIN("cuLaunchKernel")
    (void)threads_x;
    (void)shared;
    if (currentDevice() < 0 || stream == NULL || extra != NULL || blocks_x * blocks_y != 1 ||
        blocks_z != 1 || threads_y != 1 || threads_z != 1) {
        END(INVALID_VALUE);
    }
    struct Launch* launch = malloc(sizeof *launch);
    launch->kernel = (Kernel)function;
    launch->argument = *(void**)arguments[0];
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, launch) != 0) {
        free(launch);
        END(OUT_OF_MEMORY);
    }
    pthread_detach(thread);
    END(OK);
}
API int cuMemHostGetDevicePointer_v2(uint64_t* address, void* memory, unsigned flags) {
    BEGIN("cuMemHostGetDevicePointer")
    const struct Range* one = rangeAt((uint64_t)memory);
    *address = (uint64_t)memory;
    END(one != NULL && one->kind == PINNED && flags == 0 ? OK : INVALID_VALUE);
}
