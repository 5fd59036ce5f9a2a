/* A plain loop over the 3FS client's rings, the limit that hf3fs_overhead.py shows: so many
 * requests of one size at scattered places of a file, a few of them in flight.
 *
 *   cc -O2 -o hf3fs_loop hf3fs_loop.c -ldl
 *   hf3fs_loop LIBRARY MOUNT FILE read|write COUNT SIZE DEPTH     prints the seconds it took */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct iov {
    uint8_t* base;
    void* handle;
    char id[16], mount[256];
    size_t size, block;
    int numa;
};
struct ior {
    struct iov iov;
    void* handle;
    char mount[256];
    bool read;
    int depth, priority, timeout;
    uint64_t flags;
};
struct cqe {
    int32_t index, reserved;
    int64_t result;
    const void* userdata;
};

static double now(void) {
    struct timespec when;
    clock_gettime(CLOCK_MONOTONIC, &when);
    return (double)when.tv_sec + 1e-9 * (double)when.tv_nsec;
}

int main(int argc, char** argv) {
    void* library = argc == 8 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (library == NULL) {
        fprintf(stderr, "%s\n", argc == 8 ? dlerror() : "seven arguments are needed");
        return 2;
    }
    int (*iovcreate)(struct iov*, const char*, size_t, size_t, int) =
        dlsym(library, "hf3fs_iovcreate");
    void (*iovdestroy)(struct iov*) = dlsym(library, "hf3fs_iovdestroy");
    int (*iorcreate)(struct ior*, const char*, int, bool, int, int) =
        dlsym(library, "hf3fs_iorcreate");
    void (*iordestroy)(struct ior*) = dlsym(library, "hf3fs_iordestroy");
    int (*reg)(int, uint64_t) = dlsym(library, "hf3fs_reg_fd");
    int (*prep)(const struct ior*, const struct iov*, bool, void*, int, size_t, uint64_t,
                const void*) = dlsym(library, "hf3fs_prep_io");
    int (*submit)(const struct ior*) = dlsym(library, "hf3fs_submit_ios");
    int (*await)(const struct ior*, struct cqe*, int, int, const struct timespec*) =
        dlsym(library, "hf3fs_wait_for_ios");
    const bool read = strcmp(argv[4], "read") == 0;
    const long count = atol(argv[5]);
    const size_t size = (size_t)atol(argv[6]);
    const int depth = atoi(argv[7]);
    const int fd = open(argv[3], O_RDWR);
    struct iov iov;
    struct ior ior;
    if (fd < 0 || iovcreate(&iov, argv[2], size * (size_t)depth, 0, -1) != 0 ||
        iorcreate(&ior, argv[2], depth, read, 0, -1) != 0 || reg(fd, 0) > 0) {
        fprintf(stderr, "the ring cannot be made\n");
        return 2;
    }
    struct cqe* ends = calloc((size_t)depth, sizeof(*ends));
    void** places = calloc((size_t)depth, sizeof(*places));
    int unused = depth;
    for (int i = 0; i < depth; ++i) {
        places[i] = iov.base + (size_t)i * size;
    }
    const double start = now();
    for (long sent = 0, ended = 0; ended < count;) {
        const long before = sent;
        for (; sent < count && unused > 0; ++sent) {
            void* place = places[--unused];
            if (prep(&ior, &iov, read, place, fd, (size_t)(sent * 7 % count) * size, size, place) <
                0) {
                return 2;
            }
        }
        if (sent > before) {
            submit(&ior);
        }
        const int some = await(&ior, ends, depth, 1, NULL);
        for (int i = 0; i < some; ++i) {
            if (ends[i].result != (int64_t)size) {
                return 2;
            }
            places[unused++] = (void*)ends[i].userdata;
        }
        ended += some;
    }
    printf("%.9f\n", now() - start);
    iordestroy(&ior);
    iovdestroy(&iov);
    return 0;
}
