/* Limits over TCP: a plain vectored sender and receiver with an acknowledgement, and an echo whose
 * threads are those of a transfer. Owned by benchmarks/versus, which compiles it into its cache
 * folder; called through ctypes. One thread serves, one calls; the echo has a thread of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { READ_OP = 1, SCATTERED = 2, VECTORS = 256 };

struct ask {
    uint64_t operation; /* READ_OP, SCATTERED */
    uint64_t count;
    uint64_t size;
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Sends or receives so many blocks of one size, as many a call as the system takes. 0, or errno. */
static int move(int fd, int out, const uint64_t* blocks, size_t count, size_t size) {
    size_t next = 0;
    size_t done = 0; /* of the block `next` */
    while (next < count) {
        struct iovec parts[VECTORS];
        size_t n = 0;
        for (; n < VECTORS && next + n < count; ++n) {
            size_t skip = n == 0 ? done : 0;
            parts[n].iov_base = (char*)(uintptr_t)blocks[next + n] + skip;
            parts[n].iov_len = size - skip;
        }
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = n};
        ssize_t moved =
            out ? sendmsg(fd, &message, MSG_NOSIGNAL) : recvmsg(fd, &message, MSG_WAITALL);
        if (moved <= 0) {
            if (moved < 0 && errno == EINTR) {
                continue;
            }
            return moved < 0 ? errno : ECONNRESET;
        }
        done += (size_t)moved;
        next += done / size;
        done %= size;
    }
    return 0;
}

static int exactly(int fd, int out, void* bytes, size_t size) {
    uint64_t block = (uint64_t)(uintptr_t)bytes;
    return move(fd, out, &block, 1, size);
}

/* Answers the asks of one connection until its end: `plain` are the places of consecutive blocks,
 * `scattered` those of the others. 0, or errno. */
int serve_moves(int fd, const char* memory, const uint64_t* scattered) {
    int events = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    int error = events < 0 || epoll_ctl(events, EPOLL_CTL_ADD, fd, &event) < 0 ? errno : 0;
    while (error == 0) {
        struct ask ask;
        uint64_t answer = 0;
        if (epoll_wait(events, &event, 1, -1) < 0 && errno != EINTR) {
            error = errno;
            break;
        }
        if (exactly(fd, 0, &ask, sizeof(ask)) != 0) {
            break; /* its end */
        }
        uint64_t* blocks = malloc(ask.count * sizeof(*blocks));
        for (size_t i = 0; i < ask.count; ++i) {
            blocks[i] = (ask.operation & SCATTERED) != 0
                            ? scattered[i]
                            : (uint64_t)(uintptr_t)memory + i * ask.size;
        }
        error = move(fd, (ask.operation & READ_OP) != 0, blocks, ask.count, ask.size);
        if (error == 0 && (ask.operation & READ_OP) == 0) {
            error = exactly(fd, 1, &answer, sizeof(answer));
        }
        free(blocks);
    }
    if (events >= 0) {
        close(events);
    }
    return error;
}

/* One ask, from the first byte to the answer's last: the seconds, or minus the errno. */
double ask_move(int fd, int operation, const uint64_t* blocks, size_t count, size_t size) {
    struct ask ask = {(uint64_t)operation, count, size};
    uint64_t answer = 0;
    double start = now();
    int error = exactly(fd, 1, &ask, sizeof(ask));
    if (error == 0) {
        error = move(fd, (operation & READ_OP) == 0, blocks, count, size);
    }
    if (error == 0 && (operation & READ_OP) == 0) {
        error = exactly(fd, 0, &answer, sizeof(answer));
    }
    return error != 0 ? -(double)error : now() - start;
}

/* The echo: the caller sends and then looks at a word in memory, which another thread writes; that
 * one sleeps in epoll until the answer comes. */
struct echo {
    int fd;
    int events;
    char* place; /* of a READ's bytes */
    _Atomic uint64_t expected;
    _Atomic uint64_t ended;
    pthread_t thread;
};

static void* receive_answers(void* words) {
    struct echo* echo = words;
    char answer[8];
    for (;;) {
        struct epoll_event event;
        if (epoll_wait(echo->events, &event, 1, -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            break;
        }
        uint64_t size = atomic_load(&echo->expected);
        char* place = size > sizeof(answer) ? echo->place : answer;
        if (size == 0 || exactly(echo->fd, 0, place, size) != 0) {
            break;
        }
        atomic_fetch_add(&echo->ended, 1);
    }
    atomic_store(&echo->ended, UINT64_MAX);
    return NULL;
}

/* `rounds` asks for one block of at most 4 KiB, each one's seconds in `out`. 0, or errno. */
int echo_rounds(int fd, int operation, char* memory, size_t size, size_t rounds, double* out) {
    struct echo echo = {.fd = fd, .events = epoll_create1(EPOLL_CLOEXEC), .place = memory};
    struct epoll_event event = {.events = EPOLLIN};
    struct {
        struct ask ask;
        char bytes[4096];
    } message;
    int read = (operation & READ_OP) != 0;
    if (size > sizeof(message.bytes) || echo.events < 0 ||
        epoll_ctl(echo.events, EPOLL_CTL_ADD, fd, &event) < 0) {
        return size > sizeof(message.bytes) ? EINVAL : errno;
    }
    atomic_store(&echo.expected, read ? size : 8);
    int error = pthread_create(&echo.thread, NULL, receive_answers, &echo);
    if (error != 0) {
        close(echo.events);
        return error;
    }
    message.ask = (struct ask){(uint64_t)operation, 1, size};
    for (size_t i = 0; i < rounds && error == 0; ++i) {
        double start = now();
        memcpy(message.bytes, memory, read ? 0 : size);
        error = exactly(fd, 1, &message, sizeof(message.ask) + (read ? 0 : size));
        while (error == 0 && atomic_load(&echo.ended) <= i) {
        }
        out[i] = now() - start;
        error = atomic_load(&echo.ended) == UINT64_MAX ? ECONNRESET : error;
    }
    shutdown(fd, SHUT_RD); /* wakes the thread */
    pthread_join(echo.thread, NULL);
    close(echo.events);
    return error;
}
