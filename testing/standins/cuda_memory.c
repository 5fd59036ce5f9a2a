/* Memory of the stand-in for libcuda.so.1 that other processes map; see cuda_driver.c. */
#include "cuda_driver.h"

/* Sharing with other processes. */
struct IpcHandle {
    char bytes[64];
};
struct IpcText {
    int pid;
    int fd;
    int device;
    int pad;
    uint64_t size;
    uint64_t inode;
    uint64_t buffer;
};
API int cuIpcGetMemHandle(struct IpcHandle* handle, uint64_t address) {
    BEGIN("cuIpcGetMemHandle")
    const struct Range* one = rangeAt(address);
    if (one == NULL || one->kind != PLAIN || !one->own) {
        END(INVALID_VALUE);
    }
    struct stat info;
    fstat(one->fd, &info);
    const struct IpcText text = {
        getpid(), one->fd, one->device, 0, one->size, (uint64_t)info.st_ino, one->buffer};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &text, sizeof text);
    END(OK);
}
API int cuIpcOpenMemHandle_v2(uint64_t* address, struct IpcHandle handle, unsigned flags) {
    BEGIN("cuIpcOpenMemHandle")
    struct IpcText text;
    memcpy(&text, &handle, sizeof text);
    if (flags != 1) {
        END(INVALID_VALUE);
    }
    if (!peers) {
        END(NOT_SUPPORTED);
    }
    if (currentDevice() != text.device || text.pid == getpid()) {
        END(INVALID_CONTEXT);
    }
    for (struct Range* one = ranges; one != NULL; one = one->next) {
        if (memcmp(one->key, handle.bytes, 64) == 0) {
            ++one->opened;
            *address = one->base;
            END(OK);
        }
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", text.pid, text.fd);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0 || (uint64_t)info.st_ino != text.inode) {
        if (fd >= 0) {
            close(fd);
        }
        END(INVALID_VALUE); /* freed meanwhile */
    }
    void* memory = mmap(NULL, text.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        close(fd);
        END(MAP_FAILED_ERROR);
    }
    struct Range* one = add((uint64_t)memory | GPU_BIT, text.size, PLAIN, text.device);
    one->fd = fd;
    one->own = 0;
    one->opened = 1;
    memcpy(one->key, handle.bytes, 64);
    *address = one->base;
    ++handles_opened;
    END(OK);
}
API int cuIpcCloseMemHandle(uint64_t address) {
    BEGIN("cuIpcCloseMemHandle")
    struct Range* one = rangeAt(address);
    if (one == NULL || one->opened == 0) {
        END(INVALID_VALUE);
    }
    if (--one->opened == 0) {
        munmap(host(one->base), one->size);
        drop(one);
        --handles_opened;
    }
    END(OK);
}

/* Virtual memory. */
struct Properties {
    int type;
    int handle_types;
    int location_type;
    int device;
    void* windows;
    uint8_t flags[8];
};
API int cuMemGetAllocationGranularity(size_t* size, const struct Properties* wanted, int option) {
    BEGIN("cuMemGetAllocationGranularity")
    (void)wanted;
    (void)option;
    *size = PAGE;
    END(OK);
}
API int cuMemCreate(unsigned long long* handle,
                    size_t size,
                    const struct Properties* wanted,
                    unsigned long long flags) {
    BEGIN("cuMemCreate")
    if (size % PAGE != 0 || wanted->type != 1 || wanted->handle_types > 1 ||
        wanted->location_type != 1 || flags != 0) {
        END(INVALID_VALUE);
    }
    if (wanted->device < 0 || wanted->device >= device_count) {
        END(INVALID_DEVICE);
    }
    struct Allocation* made = calloc(1, sizeof *made);
    made->fd = memfd_create("vmm", MFD_CLOEXEC);
    made->size = size;
    made->device = wanted->device;
    made->references = 1;
    *handle = (unsigned long long)(uintptr_t)made;
    /* As little as a GPU has. */
    if (size > (1ULL << 30) || ftruncate(made->fd, (off_t)size) != 0) {
        close(made->fd);
        free(made);
        END(OUT_OF_MEMORY);
    }
    END(OK);
}
static void release(struct Allocation* allocation) {
    if (--allocation->references == 0) {
        close(allocation->fd);
        free(allocation);
    }
}
API int cuMemRelease(unsigned long long handle) {
    BEGIN("cuMemRelease")
    release((struct Allocation*)(uintptr_t)handle);
    END(OK);
}
API int cuMemRetainAllocationHandle(unsigned long long* handle, void* address) {
    BEGIN("cuMemRetainAllocationHandle")
    const struct Range* one = rangeAt((uint64_t)address);
    if (one == NULL || one->kind != VMM) {
        END(INVALID_VALUE);
    }
    *handle = one->handle;
    ++((struct Allocation*)(uintptr_t)one->handle)->references;
    END(OK);
}
API int cuMemAddressReserve(
    uint64_t* address, size_t size, size_t alignment, uint64_t wanted, unsigned long long flags) {
    BEGIN("cuMemAddressReserve")
    (void)alignment;
    (void)wanted;
    if (size % PAGE != 0 || flags != 0) {
        END(INVALID_VALUE);
    }
    void* memory = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        END(OUT_OF_MEMORY);
    }
    *address = (uint64_t)memory | GPU_BIT;
    add(*address, size, RESERVED, -1);
    END(OK);
}
API int cuMemAddressFree(uint64_t address, size_t size) {
    BEGIN("cuMemAddressFree")
    struct Range* one = rangeAt(address);
    if (one == NULL || one->kind != RESERVED || one->base != address || one->size != size) {
        END(INVALID_VALUE);
    }
    munmap(host(address), size);
    drop(one);
    END(OK);
}
API int cuMemMap(uint64_t address,
                 size_t size,
                 size_t offset,
                 unsigned long long handle,
                 unsigned long long flags) {
    BEGIN("cuMemMap")
    struct Allocation* allocation = (struct Allocation*)(uintptr_t)handle;
    const struct Range* one = rangeAt(address);
    if (one == NULL || one->kind != RESERVED || offset != 0 || flags != 0 ||
        size > allocation->size) {
        END(INVALID_VALUE);
    }
    if (mmap(host(address), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, allocation->fd,
             0) == MAP_FAILED) {
        END(MAP_FAILED_ERROR);
    }
    ++allocation->references;
    add(address, size, VMM, allocation->device)->handle = handle;
    END(OK);
}
API int cuMemUnmap(uint64_t address, size_t size) {
    BEGIN("cuMemUnmap")
    struct Range* one = rangeAt(address);
    if (one == NULL || one->kind != VMM || one->base != address || one->size != size) {
        END(INVALID_VALUE);
    }
    if (mmap(host(address), size, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
        END(MAP_FAILED_ERROR);
    }
    release((struct Allocation*)(uintptr_t)one->handle);
    drop(one);
    END(OK);
}
API int cuMemSetAccess(uint64_t address, size_t size, const void* access, size_t count) {
    BEGIN("cuMemSetAccess")
    const struct Range* one = rangeAt(address);
    END(one != NULL && one->kind == VMM && size == one->size && access != NULL && count > 0
            ? OK
            : INVALID_VALUE);
}
API int cuMemExportToShareableHandle(void* to,
                                     unsigned long long handle,
                                     int type,
                                     unsigned long long flags) {
    BEGIN("cuMemExportToShareableHandle")
    if (type != 1 || flags != 0) {
        END(INVALID_VALUE);
    }
    *(int*)to = fcntl(((struct Allocation*)(uintptr_t)handle)->fd, F_DUPFD_CLOEXEC, 0);
    END(*(int*)to >= 0 ? OK : OUT_OF_MEMORY);
}
API int cuMemImportFromShareableHandle(unsigned long long* handle, void* from, int type) {
    BEGIN("cuMemImportFromShareableHandle")
    struct stat info;
    if (!peers) {
        END(NOT_SUPPORTED);
    }
    if (type != 1 || fstat((int)(intptr_t)from, &info) != 0) {
        END(INVALID_VALUE);
    }
    struct Allocation* made = calloc(1, sizeof *made);
    made->fd = fcntl((int)(intptr_t)from, F_DUPFD_CLOEXEC, 0);
    made->size = (uint64_t)info.st_size;
    made->device = currentDevice();
    made->references = 1;
    *handle = (unsigned long long)(uintptr_t)made;
    END(OK);
}
