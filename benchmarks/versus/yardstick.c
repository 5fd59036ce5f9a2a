/* Limits: a plain memcpy loop over scattered blocks, a plain I/O loop; called through ctypes.
 * Owned by benchmarks/versus, which compiles it into its cache folder. No thread rule. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

void copy_blocks(const uint64_t* to, const uint64_t* from, size_t count, size_t size) {
    for (size_t i = 0; i < count; ++i) {
        memcpy((void*)(uintptr_t)to[i], (const void*)(uintptr_t)from[i], size);
    }
}

/* Reads every word once: what looking at N x 3 descriptors costs at least. */
uint64_t sum_words(const uint64_t* words, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; ++i) {
        sum += words[i];
    }
    return sum;
}

/* Blocks between this process and another, by cross-memory attach: batches of up to 64 vectors and
 * 1 MiB. Gives the bytes moved; fewer than asked for where the system refuses. */
size_t attach_blocks(int pid, const uint64_t* far, const uint64_t* near, size_t count, size_t size,
                     int read) {
    struct iovec there[64];
    struct iovec here[64];
    size_t most = ((size_t)1 << 20) / size;
    size_t moved = 0;
    most = most > 64 ? 64 : most < 1 ? 1 : most;
    for (size_t i = 0; i < count;) {
        size_t n = 0;
        for (; n < most && i < count; ++n, ++i) {
            there[n].iov_base = (void*)(uintptr_t)far[i];
            here[n].iov_base = (void*)(uintptr_t)near[i];
            there[n].iov_len = here[n].iov_len = size;
        }
        ssize_t done = read ? process_vm_readv(pid, here, n, there, n, 0)
                            : process_vm_writev(pid, here, n, there, n, 0);
        if (done < 0) {
            return moved;
        }
        moved += (size_t)done;
    }
    return moved;
}

/* The limit on a disk: one thread that keeps `depth` requests of Linux AIO in flight, each from or
 * to its own place in memory, and knows nothing else. `depth` <= 256. 0, or the errno of what
 * failed. One thread. */
int move_blocks(int fd,
                int write,
                const uint64_t* memory,
                const uint64_t* offsets,
                size_t count,
                size_t size,
                size_t depth) {
    static aio_context_t context = 0; /* kept: the kernel takes 30 ms to end one */
    struct iocb* blocks = calloc(depth, sizeof(*blocks));
    struct iocb** batch = calloc(depth, sizeof(*batch));
    struct io_event* events = calloc(depth, sizeof(*events));
    int error = context == 0 && syscall(SYS_io_setup, 256, &context) < 0 ? errno : 0;
    size_t next = 0;
    size_t ended = 0;
    size_t free_blocks = depth;
    for (size_t i = 0; i < depth; ++i) {
        batch[i] = &blocks[i]; /* batch[0..free_blocks) are free */
    }
    while (error == 0 && ended < count) {
        size_t fresh = 0;
        while (fresh < free_blocks && next < count) {
            struct iocb* block = batch[fresh++];
            memset(block, 0, sizeof(*block));
            block->aio_data = (uint64_t)(uintptr_t)block;
            block->aio_fildes = (uint32_t)fd;
            block->aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            block->aio_buf = memory[next];
            block->aio_nbytes = size;
            block->aio_offset = (int64_t)offsets[next++];
        }
        for (size_t sent = 0; sent < fresh && error == 0;) {
            long got = syscall(SYS_io_submit, context, fresh - sent, batch + sent);
            error = got <= 0 ? errno : 0;
            sent += got > 0 ? (size_t)got : 0;
        }
        memmove(batch, batch + fresh, (free_blocks - fresh) * sizeof(*batch));
        free_blocks -= fresh;
        size_t wanted = count - ended < depth / 4 ? 1 : depth / 4; /* batches: fewer calls */
        long got =
            error != 0 ? 0 : syscall(SYS_io_getevents, context, wanted, depth, events, NULL);
        for (long i = 0; i < got; ++i) {
            error = events[i].res == (int64_t)size ? error : EIO;
            batch[free_blocks++] = (struct iocb*)(uintptr_t)events[i].data;
            ++ended;
        }
    }
    free(blocks);
    free(batch);
    free(events);
    return error;
}
