// The limit of the GDS rows: cuFile's plain calls in a loop, by so many threads. The library is the
// one that NIXL has opened, so it has one driver in the process.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef ssize_t (*Move)(void*, void*, size_t, off_t, off_t);

struct Loop {
    Move move;
    void* file;
    char* memory;
    const uint64_t* offsets;
    size_t count;
    size_t size;
    size_t next;
    int failed;
};

static void* run(void* argument) {
    struct Loop* loop = argument;
    for (;;) {
        const size_t i = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED);
        if (i >= loop->count) {
            return NULL;
        }
        const uint64_t at = loop->offsets[i];
        if (loop->move(loop->file, loop->memory + at, loop->size, (off_t)at, 0) !=
            (ssize_t)loop->size) {
            loop->failed = 1;
        }
    }
}

// cuFile's handle of a descriptor, or null.
void* cufile_open(const char* path, int fd) {
    struct Descriptor {
        int type;
        union {
            int fd;
            void* handle;
        } of;
        const void* operations;
    } descriptor = {1, {0}, NULL};
    struct Outcome {
        int code;
        int cuda;
    };
    descriptor.of.fd = fd;
    void* library = dlopen(path, RTLD_NOW);
    struct Outcome (*take)(void**, struct Descriptor*) =
        library == NULL ? NULL : (void*)dlsym(library, "cuFileHandleRegister");
    void* handle = NULL;
    return take != NULL && take(&handle, &descriptor).code == 0 ? handle : NULL;
}

// Moves blocks at the same offsets of memory and file. 0, or -1 where one fell short. The calling
// thread is one of `threads`.
int cufile_blocks(const char* path, void* file, int write, void* memory, const uint64_t* offsets,
                  size_t count, size_t size, unsigned threads) {
    struct Loop loop = {NULL, file, memory, offsets, count, size, 0, 0};
    pthread_t others[64];
    loop.move = (Move)dlsym(dlopen(path, RTLD_NOW), write ? "cuFileWrite" : "cuFileRead");
    unsigned started = 0;
    while (started + 1 < threads && started < 64 &&
           pthread_create(&others[started], NULL, run, &loop) == 0) {
        ++started;
    }
    run(&loop);
    for (unsigned i = 0; i < started; ++i) {
        pthread_join(others[i], NULL);
    }
    return loop.failed ? -1 : 0;
}
