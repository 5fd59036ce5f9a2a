// Stands for libcufile.so.0 over pread and pwrite, for what the real one cannot be made to do:
// faults, and a GPU (memory at an address with bit 62 set is host memory without that bit). What it
// does is read from NIXL_STANDIN_CUFILE: words, separated by commas, counted in the process from 1:
//
//   open=hang | open=CODE     the driver
//   nvfs=MAJOR                a driver of that version, so direct mode
//   fail=N short=N lose=N     the event of the Nth batch request: FAILED as the real one reports it
//                             (the batch's status is 5044, other events are forgotten), half of
//                             the bytes, none at all
//   refuse=N                  the Nth submission is refused
//   bad=OFFSET                whatever touches this byte of a file fails, in a batch and in a call
//   delay=MS                  batches end so much later, on a thread
//   nobuf=1                   GPU memory cannot be registered
//
// NIXL_STANDIN_LOG names a file that gets one line for each call. Tests only; thread-safe.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int code;
    int cuda;
} Error;
typedef struct {
    int type;
    union {
        int fd;
        void* handle;
    } of;
    const void* operations;
} Descriptor;
typedef struct {
    int mode;
    struct {
        void* memory;
        off_t fileOffset;
        off_t memoryOffset;
        size_t size;
    } io;
    void* file;
    int op;
    void* cookie;
} Request;
typedef struct {
    void* cookie;
    int status;
    size_t result;
} Event;
typedef struct {
    unsigned nvfsMajor, nvfsMinor;
    size_t poll, direct;
    unsigned fileSystems, control, features, cache, buffer, pinned, maxBatch, timeout;
} Properties;
typedef struct {
    int fd;
} File;
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned limit;
    unsigned count;  // events that there are
    bool failed;
    bool working;
    Event events[128];
    unsigned total;
    Request requests[128];
} Batch;

enum { COMPLETE = 0x10, FAILED = 0x40 };
static const uint64_t kGpuBit = 1ULL << 62;
static int requests_seen;
static int submissions_seen;

static long setting(const char* name, long otherwise) {
    const char* at = getenv("NIXL_STANDIN_CUFILE");
    const size_t length = strlen(name);
    while (at != NULL && *at != '\0') {
        if (strncmp(at, name, length) == 0 && at[length] == '=') {
            return strcmp(at + length + 1, "hang") == 0 ? -1 : strtol(at + length + 1, NULL, 10);
        }
        at = strchr(at, ',');
        at = at != NULL ? at + 1 : NULL;
    }
    return otherwise;
}

static void note(const char* call, const void* memory, long size, int code) {
    const char* path = getenv("NIXL_STANDIN_LOG");
    FILE* file = path != NULL ? fopen(path, "a") : NULL;
    if (file != NULL) {
        fprintf(file, "%s %p %ld %d\n", call, memory, size, code);
        fclose(file);
    }
}

static ssize_t move(const File* file, int op, uint64_t memory, size_t size, off_t offset) {
    const long bad = setting("bad", -1);
    void* at = (void*)(uintptr_t)(memory & ~kGpuBit);
    if (bad >= offset && bad < offset + (long)size) {
        errno = EIO;
        return -1;
    }
    return op == 1 ? pwrite(file->fd, at, size, offset) : pread(file->fd, at, size, offset);
}

Error cuFileDriverOpen(void) {
    const long code = setting("open", 0);
    for (; code == -1;) {
        pause();
    }
    return (Error){(int)code, 0};
}

Error cuFileGetVersion(int* version) {
    *version = 1200;
    return (Error){0, 0};
}

Error cuFileDriverGetProperties(Properties* properties) {
    memset(properties, 0, sizeof(*properties));
    properties->nvfsMajor = (unsigned)setting("nvfs", 0);
    properties->nvfsMinor = 7;
    properties->maxBatch = 128;
    return (Error){0, 0};
}

Error cuFileHandleRegister(void** handle, Descriptor* descriptor) {
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", descriptor->of.fd);
    File* file = malloc(sizeof(*file));
    // As the real one does: without O_DIRECT, for what is not aligned.
    const int flags = fcntl(descriptor->of.fd, F_GETFL) & O_ACCMODE;
    file->fd = open(path, flags | O_CLOEXEC);
    if (file->fd < 0) {
        free(file);
        return (Error){5027, 0};
    }
    *handle = file;
    return (Error){0, 0};
}

void cuFileHandleDeregister(void* handle) {
    close(((File*)handle)->fd);
    free(handle);
}

Error cuFileBufRegister(const void* memory, size_t size, int flags) {
    (void)flags;
    const int code = setting("nobuf", 0) != 0 ? 5036 : 0;
    note("register", memory, (long)size, code);
    return (Error){code, 0};
}

Error cuFileBufDeregister(const void* memory) {
    note("deregister", memory, 0, 0);
    return (Error){0, 0};
}

ssize_t cuFileRead(void* file, void* memory, size_t size, off_t offset, off_t memory_offset) {
    const ssize_t moved = move(file, 0, (uint64_t)memory + (uint64_t)memory_offset, size, offset);
    note("read", memory, moved, 0);
    return moved;
}

ssize_t cuFileWrite(
    void* file, const void* memory, size_t size, off_t offset, off_t memory_offset) {
    const ssize_t moved = move(file, 1, (uint64_t)memory + (uint64_t)memory_offset, size, offset);
    note("write", memory, moved, 0);
    return moved;
}

Error cuFileBatchIOSetUp(void** handle, unsigned limit) {
    if (limit > 128) {
        return (Error){5022, 0};
    }
    Batch* batch = calloc(1, sizeof(*batch));
    pthread_mutex_init(&batch->mutex, NULL);
    pthread_cond_init(&batch->changed, NULL);
    batch->limit = limit;
    *handle = batch;
    return (Error){0, 0};
}

static void* work(void* argument) {
    Batch* batch = argument;
    const long delay = setting("delay", 0);
    const struct timespec pause = {delay / 1000, delay % 1000 * 1000000};
    if (delay > 0) {
        nanosleep(&pause, NULL);  // sleeps: the delay is what a test asks for
    }
    for (unsigned i = 0; i < batch->total; ++i) {
        const Request* request = &batch->requests[i];
        const long number = __atomic_add_fetch(&requests_seen, 1, __ATOMIC_SEQ_CST);
        const bool shortened = number == setting("short", 0);
        ssize_t moved = move(request->file, request->op, (uint64_t)request->io.memory,
                             request->io.size / (shortened ? 2 : 1), request->io.fileOffset);
        pthread_mutex_lock(&batch->mutex);
        if (moved < 0 || number == setting("fail", 0)) {
            batch->failed = true;
            batch->events[0] = (Event){request->cookie, FAILED, (size_t)-1};
        } else if (number != setting("lose", 0) && !batch->failed) {
            batch->events[batch->count++] = (Event){request->cookie, COMPLETE, (size_t)moved};
        }
        pthread_mutex_unlock(&batch->mutex);
    }
    pthread_mutex_lock(&batch->mutex);
    batch->working = false;
    pthread_cond_broadcast(&batch->changed);
    pthread_mutex_unlock(&batch->mutex);
    return NULL;
}

Error cuFileBatchIOSubmit(void* handle, unsigned count, Request* requests, unsigned flags) {
    (void)flags;
    Batch* batch = handle;
    const long number = __atomic_add_fetch(&submissions_seen, 1, __ATOMIC_SEQ_CST);
    note("submit", NULL, count, 0);
    if (count > batch->limit) {
        return (Error){5040, 0};
    }
    if (number == setting("refuse", 0)) {
        return (Error){5035, 0};
    }
    memcpy(batch->requests, requests, count * sizeof(*requests));
    batch->total = count;
    batch->count = 0;
    batch->failed = false;
    batch->working = true;
    pthread_t thread;
    pthread_create(&thread, NULL, work, batch);
    pthread_detach(thread);
    return (Error){0, 0};
}

static void waitForWork(Batch* batch) {
    while (batch->working) {
        pthread_cond_wait(&batch->changed, &batch->mutex);
    }
}

Error cuFileBatchIOGetStatus(
    void* handle, unsigned least, unsigned* count, Event* events, struct timespec* timeout) {
    (void)timeout;
    Batch* batch = handle;
    Error error = {0, 0};
    pthread_mutex_lock(&batch->mutex);
    if (least > 0) {
        waitForWork(batch);
    }
    if (batch->working) {
        *count = 0;
    } else if (batch->failed) {
        memset(events, 0, *count * sizeof(*events));
        events[0] = batch->events[0];
        error.code = 5044;
    } else {
        *count = batch->count < *count ? batch->count : *count;
        memcpy(events, batch->events, *count * sizeof(*events));
        batch->count -= *count;
        memmove(batch->events, batch->events + *count, batch->count * sizeof(*events));
    }
    pthread_mutex_unlock(&batch->mutex);
    return error;
}

void cuFileBatchIODestroy(void* handle) {
    Batch* batch = handle;
    pthread_mutex_lock(&batch->mutex);
    waitForWork(batch);
    pthread_mutex_unlock(&batch->mutex);
    free(batch);
}
