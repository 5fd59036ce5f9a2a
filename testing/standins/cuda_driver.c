/* Stands in for libcuda.so.1 in tests: GPUs whose memory is memory of this host. Addresses of a GPU
 * are host addresses with bit 62 set, so that a processor that touches one crashes. Copies are
 * checked against what is allocated, and may be held back or fail when a test says so.
 *
 * Environment, read by cuInit:
 *   CUDA_STANDIN_DEVICES=N     how many GPUs (2)
 *   CUDA_STANDIN_FAIL=CALL:AFTER:ERROR   as cudaStandinFail
 *   CUDA_STANDIN_PEERS=0       no GPU sees processes' memory (cuIpcOpenMemHandle fails)
 *   CUDA_STANDIN_WAITS="OUT IN"  writes a byte to the descriptor OUT, and waits for one on IN
 *
 * For tests, by dlsym: see the end of the file and of cuda_streams.c. Any thread; one lock over
 * all. */
#include "cuda_driver.h"

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pid_t owner;
int device_count = 2;
int peers = 1;
struct Range* ranges;
static uint64_t next_buffer = 1;
uint64_t handles_opened;
static char fail_call[48];
static int fail_after;
static int fail_error;
static int fail_once;
static int contexts[MAX_DEVICES];
static _Thread_local void* current[16];
static _Thread_local int depth;

int failing(const char* call) {
    if (fail_call[0] == '\0' || strcmp(call, fail_call) != 0) {
        return OK;
    }
    if (fail_after > 0) {
        --fail_after;
        return OK;
    }
    if (fail_once) {
        fail_call[0] = '\0';
    }
    return fail_error;
}

static void readSettings(void) {
    const char* text = getenv("CUDA_STANDIN_DEVICES");
    device_count = text != NULL ? atoi(text) : 2;
    text = getenv("CUDA_STANDIN_PEERS");
    peers = text == NULL || atoi(text) != 0;
    text = getenv("CUDA_STANDIN_FAIL");
    if (text != NULL && sscanf(text, "%47[^:]:%d:%d", fail_call, &fail_after, &fail_error) != 3) {
        fprintf(stderr, "CUDA_STANDIN_FAIL=%s is not CALL:AFTER:ERROR\n", text);
        abort();
    }
}

API int cuInit(unsigned flags) {
    const char* waits = getenv("CUDA_STANDIN_WAITS");
    if (waits != NULL) {
        char* next = NULL;
        const int out = (int)strtol(waits, &next, 10);
        char byte = 0;
        if (write(out, &byte, 1) != 1 || read((int)strtol(next, NULL, 10), &byte, 1) != 1) {
            return 999;
        }
    }
    /* A forked child starts with nothing, and with a lock of its own. */
    if (owner != getpid()) {
        const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
        lock = fresh;
        owner = getpid();
        ranges = NULL;
        forgetStreams();
        readSettings();
    }
    if (device_count == 0) {
        return NO_DEVICE;
    }
    BEGIN("cuInit")
    END(flags == 0 ? OK : INVALID_VALUE);
}

API int cuDriverGetVersion(int* version) {
    *version = 13000;
    return OK;
}
API int cuDeviceGetCount(int* count) {
    BEGIN("cuDeviceGetCount")
    *count = device_count;
    END(OK);
}
API int cuDeviceGet(int* device, int ordinal) {
    BEGIN("cuDeviceGet")
    *device = ordinal;
    END(ordinal >= 0 && ordinal < device_count ? OK : INVALID_DEVICE);
}
API int cuDeviceGetName(char* name, int size, int device) {
    snprintf(name, (size_t)size, "Stand-in GPU %d", device);
    return OK;
}
API int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = 1ULL << 30;
    return device < device_count ? OK : INVALID_DEVICE;
}
API int cuDeviceGetUuid(void* uuid, int device) {
    memset(uuid, 0x5A, 16);
    ((char*)uuid)[15] = (char)device;
    return device < device_count ? OK : INVALID_DEVICE;
}
API int cuDeviceGetPCIBusId(char* text, int size, int device) {
    snprintf(text, (size_t)size, "0000:%02x:00.0", 0x10 + device);
    return OK;
}
API int cuDeviceCanAccessPeer(int* can, int device, int other) {
    *can = device != other;
    return OK;
}
API int cuDevicePrimaryCtxRetain(void** context, int device) {
    BEGIN("cuDevicePrimaryCtxRetain")
    if (device < 0 || device >= device_count) {
        END(INVALID_DEVICE);
    }
    *context = &contexts[device];
    END(OK);
}
API int cuCtxPushCurrent_v2(void* context) {
    if ((int*)context < contexts || (int*)context >= contexts + MAX_DEVICES || depth == 15) {
        return INVALID_CONTEXT;
    }
    current[++depth] = context;
    return OK;
}
API int cuCtxPopCurrent_v2(void** context) {
    *context = current[depth];
    if (depth == 0) {
        return INVALID_CONTEXT;
    }
    --depth;
    return OK;
}
API int cuCtxGetCurrent(void** context) {
    *context = current[depth];
    return OK;
}
API int cuCtxSetCurrent(void* context) {
    current[depth] = context;
    return OK;
}
API int cuThreadExchangeStreamCaptureMode(int* mode) {
    static _Thread_local int now = 0;
    const int before = now;
    now = *mode;
    *mode = before;
    return OK;
}
int currentDevice(void) {
    return current[depth] == NULL ? -1 : (int)((int*)current[depth] - contexts);
}

/* Memory. */
struct Range* rangeAt(uint64_t address) {
    struct Range* found = NULL;
    for (struct Range* one = ranges; one != NULL; one = one->next) {
        if (address >= one->base && address - one->base < one->size &&
            (found == NULL || found->kind == RESERVED)) {
            found = one;
        }
    }
    return found;
}
struct Range* add(uint64_t base, uint64_t size, int kind, int device) {
    struct Range* one = calloc(1, sizeof *one);
    one->base = base;
    one->size = size;
    one->kind = kind;
    one->device = device;
    one->fd = -1;
    one->own = 1;
    one->buffer = next_buffer++;
    one->next = ranges;
    ranges = one;
    return one;
}
void drop(struct Range* gone) {
    for (struct Range** at = &ranges; *at != NULL; at = &(*at)->next) {
        if (*at == gone) {
            *at = gone->next;
            break;
        }
    }
    if (gone->fd >= 0) {
        close(gone->fd);
    }
    free(gone);
}
void* host(uint64_t address) {
    return (void*)(address & ~GPU_BIT);
}

static int allocate(uint64_t* address, size_t size, int kind) {
    const int device = currentDevice();
    if (device < 0) {
        return INVALID_CONTEXT;
    }
    if (size == 0) {
        return INVALID_VALUE;
    }
    const int fd = memfd_create("gpu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
        return OUT_OF_MEMORY;
    }
    void* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        close(fd);
        return OUT_OF_MEMORY;
    }
    *address = (uint64_t)memory | GPU_BIT;
    add(*address, size, kind, device)->fd = fd;
    return OK;
}
API int cuMemAlloc_v2(uint64_t* address, size_t size) {
    BEGIN("cuMemAlloc")
    END(allocate(address, size, PLAIN));
}
API int cuMemAllocManaged(uint64_t* address, size_t size, unsigned flags) {
    (void)flags;
    BEGIN("cuMemAllocManaged")
    END(allocate(address, size, MANAGED));
}
API int cuMemFree_v2(uint64_t address) {
    BEGIN("cuMemFree")
    struct Range* one = rangeAt(address);
    if (one == NULL || one->base != address || (one->kind != PLAIN && one->kind != MANAGED)) {
        END(INVALID_VALUE);
    }
    munmap(host(address), one->size);
    drop(one);
    END(OK);
}
API int cuMemHostAlloc(void** memory, size_t size, unsigned flags) {
    BEGIN("cuMemHostAlloc")
    (void)flags;
    if (currentDevice() < 0) {
        END(INVALID_CONTEXT);
    }
    *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*memory == MAP_FAILED) {
        END(OUT_OF_MEMORY);
    }
    add((uint64_t)*memory, size, PINNED, currentDevice());
    END(OK);
}
API int cuMemFreeHost(void* memory) {
    BEGIN("cuMemFreeHost")
    struct Range* one = rangeAt((uint64_t)memory);
    if (one == NULL) {
        END(INVALID_VALUE);
    }
    munmap(memory, one->size);
    drop(one);
    END(OK);
}
API int cuMemHostRegister_v2(void* memory, size_t size, unsigned flags) {
    BEGIN("cuMemHostRegister")
    if (memory == NULL || size == 0 || (flags != 1 && flags != 7)) { /* 7: registers */
        END(INVALID_VALUE);
    }
    if (currentDevice() < 0) {
        END(INVALID_CONTEXT);
    }
    if (rangeAt((uint64_t)memory) != NULL) {
        END(ALREADY_REGISTERED);
    }
    add((uint64_t)memory, size, PINNED, currentDevice());
    END(OK);
}
API int cuMemHostUnregister(void* memory) {
    BEGIN("cuMemHostUnregister")
    struct Range* one = rangeAt((uint64_t)memory);
    if (one == NULL || one->base != (uint64_t)memory) {
        END(INVALID_VALUE);
    }
    drop(one);
    END(OK);
}
API int cuPointerGetAttributes(unsigned count, int* names, void** values, uint64_t address) {
    BEGIN("cuPointerGetAttributes")
    const struct Range* one = rangeAt(address);
    if (one != NULL && one->kind == RESERVED) {
        one = NULL;
    }
    for (unsigned i = 0; i < count; ++i) {
        switch (names[i]) {
            case 2:
                *(unsigned*)values[i] = one == NULL ? 0 : one->kind == PINNED ? 1 : 2;
                break;
            case 7:
                *(uint64_t*)values[i] = one == NULL ? 0 : one->buffer;
                break;
            case 8:
                *(uint8_t*)values[i] = one != NULL && one->kind == MANAGED;
                break;
            case 9:
                *(int*)values[i] = one == NULL ? -2 : one->device;
                break;
            case 11:
            case 19:
                *(uint64_t*)values[i] = one == NULL ? 0 : one->base;
                break;
            case 12:
            case 18:
                *(size_t*)values[i] = one == NULL ? 0 : one->size;
                break;
            default:
                END(INVALID_VALUE);
        }
    }
    END(OK);
}

API int cuGetErrorString(int error, const char** text) {
    static const struct {
        int code;
        const char* text;
    } kTexts[] = {
        {OK, "no error"},
        {INVALID_VALUE, "invalid argument"},
        {OUT_OF_MEMORY, "out of memory"},
        {NOT_INITIALIZED, "initialization error"},
        {NO_DEVICE, "no CUDA-capable device is detected"},
        {INVALID_DEVICE, "invalid device ordinal"},
        {INVALID_CONTEXT, "invalid device context"},
        {MAP_FAILED_ERROR, "mapping of buffer object failed"},
        {INVALID_HANDLE, "invalid resource handle"},
        {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"},
        {NOT_SUPPORTED, "operation not supported"}};
    *text = NULL;
    for (size_t i = 0; i < sizeof kTexts / sizeof kTexts[0]; ++i) {
        if (kTexts[i].code == error) {
            *text = kTexts[i].text;
        }
    }
    return *text != NULL ? OK : INVALID_VALUE;
}

/* For tests. */

/* The call of this name ("cuMemcpyAsync", without _v2; "copy": a copy that runs) gives `error`
 * after it went well `after` times; null ends that. */
API void cudaStandinFail(const char* call, int after, int error) {
    pthread_mutex_lock(&lock);
    snprintf(fail_call, sizeof fail_call, "%s", call != NULL ? call : "");
    fail_after = after;
    fail_error = error;
    fail_once = 0;
    if (call == NULL) {
        clearStreams();
    }
    pthread_mutex_unlock(&lock);
}
API int cudaStandinCurrent(void) {
    return currentDevice();
}
/* The same, for one call only. */
API void cudaStandinFailOnce(const char* call, int after, int error) {
    cudaStandinFail(call, after, error);
    fail_once = 1;
}
