/* Streams, events and copies of the stand-in for libcuda.so.1; see cuda_driver.c. */
#include "cuda_driver.h"

struct Copy {
    struct Copy* next;
    uint64_t to;
    uint64_t from;
    size_t size;
};
struct Stream {
    int device;
    uint64_t queued;
    uint64_t done;
    int error;
    struct Copy* first;
    struct Copy** last;
    struct Stream* next;
};
struct Event {
    struct Stream* stream;
    uint64_t at;
};

static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct Stream* streams;
static int held;
static uint64_t copies_made;
static uint64_t bytes_copied;

static int side(uint64_t address, size_t size, void** at) {
    *at = host(address);
    if ((address & GPU_BIT) == 0) {
        return OK;
    }
    const struct Range* one = rangeAt(address);
    return one != NULL && one->kind != RESERVED && address - one->base + size <= one->size
               ? OK
               : ILLEGAL_ADDRESS;
}
static void runCopies(struct Stream* stream) {
    while (stream->first != NULL && !held) {
        struct Copy* one = stream->first;
        void* to;
        void* from;
        if (stream->error == OK) {
            stream->error = failing("copy");
        }
        if (stream->error == OK) {
            stream->error = side(one->to, one->size, &to) | side(one->from, one->size, &from);
        }
        if (stream->error == OK) {
            memmove(to, from, one->size);
            ++copies_made;
            bytes_copied += one->size;
        }
        stream->first = one->next;
        if (stream->first == NULL) {
            stream->last = &stream->first;
        }
        free(one);
        ++stream->done;
    }
    pthread_cond_broadcast(&changed);
}
API int cuStreamCreate(void** stream, unsigned flags) {
    BEGIN("cuStreamCreate")
    if (currentDevice() < 0 || flags != 1) {
        END(INVALID_CONTEXT);
    }
    struct Stream* made = calloc(1, sizeof *made);
    made->device = currentDevice();
    made->last = &made->first;
    made->next = streams;
    streams = made;
    *stream = made;
    END(OK);
}
API int cuStreamDestroy_v2(void* stream) {
    BEGIN("cuStreamDestroy")
    for (struct Stream** at = &streams; *at != NULL; at = &(*at)->next) {
        if (*at == stream) {
            *at = ((struct Stream*)stream)->next;
            free(stream);
            END(OK);
        }
    }
    END(INVALID_HANDLE);
}
API int cuMemcpyAsync(uint64_t to, uint64_t from, size_t size, void* stream) {
    BEGIN("cuMemcpyAsync")
    struct Stream* on = stream;
    void* unused;
    if (on == NULL || on->device != currentDevice()) {
        END(INVALID_CONTEXT);
    }
    if (side(to, size, &unused) != OK || side(from, size, &unused) != OK) {
        END(INVALID_VALUE);
    }
    struct Copy* one = calloc(1, sizeof *one);
    one->to = to;
    one->from = from;
    one->size = size;
    *on->last = one;
    on->last = &one->next;
    ++on->queued;
    runCopies(on);
    END(OK);
}
/* Of the calling program itself. */
API int cuMemcpy(uint64_t to, uint64_t from, size_t size) {
    BEGIN("cuMemcpy")
    void* target;
    void* source;
    if (side(to, size, &target) != OK || side(from, size, &source) != OK) {
        END(INVALID_VALUE);
    }
    memmove(target, source, size);
    END(OK);
}
API int cuEventCreate(void** event, unsigned flags) {
    BEGIN("cuEventCreate")
    (void)flags;
    *event = calloc(1, sizeof(struct Event));
    END(currentDevice() < 0 ? INVALID_CONTEXT : OK);
}
API int cuEventDestroy_v2(void* event) {
    free(event);
    return OK;
}
API int cuEventRecord(void* event, void* stream) {
    BEGIN("cuEventRecord")
    ((struct Event*)event)->stream = stream;
    ((struct Event*)event)->at = ((struct Stream*)stream)->queued;
    END(OK);
}
static int stateOf(const struct Event* event) {
    if (event->stream == NULL) {
        return OK;
    }
    runCopies(event->stream);
    return event->stream->done < event->at ? NOT_READY : event->stream->error;
}
API int cuEventQuery(void* event) {
    BEGIN("cuEventQuery")
    END(stateOf(event));
}
API int cuEventSynchronize(void* event) {
    BEGIN("cuEventSynchronize")
    while ((result = stateOf(event)) == NOT_READY) {
        pthread_cond_wait(&changed, &lock);
    }
    END(result);
}

/* REQUIRES: lock. In a forked child: they are the parent's. */
void forgetStreams(void) {
    streams = NULL;
}
/* REQUIRES: lock. What went wrong in a stream is forgotten. */
void clearStreams(void) {
    for (struct Stream* one = streams; one != NULL; one = one->next) {
        one->error = OK;
    }
}

/* For tests. */

/* Copies that are started from now on wait (1), or all go on (0). */
API void cudaStandinHold(int hold) {
    pthread_mutex_lock(&lock);
    held = hold;
    for (struct Stream* one = streams; one != NULL && !hold; one = one->next) {
        runCopies(one);
    }
    pthread_mutex_unlock(&lock);
}
/* 0: copies made, 1: bytes copied, 2: handles of other processes that are open, 3: ranges. */
API uint64_t cudaStandinFigure(int which) {
    pthread_mutex_lock(&lock);
    uint64_t figure = which == 0 ? copies_made : which == 1 ? bytes_copied : handles_opened;
    if (which == 3) {
        figure = 0;
        for (const struct Range* one = ranges; one != NULL; one = one->next) {
            ++figure;
        }
    }
    pthread_mutex_unlock(&lock);
    return figure;
}
