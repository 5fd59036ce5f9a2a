/* What the files of the stand-in for libcuda.so.1 share; see cuda_driver.c. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define GPU_BIT (1ULL << 62)
#define PAGE (2ULL << 20)
#define MAX_DEVICES 8

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    MAP_FAILED_ERROR = 205,
    INVALID_HANDLE = 400,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712,
    NOT_SUPPORTED = 801,
};

/* Kinds of memory. */
enum { PLAIN, VMM, MANAGED, RESERVED, PINNED };

struct Range {
    struct Range* next;
    uint64_t base; /* of the GPU; of the host where PINNED */
    uint64_t size;
    int kind;
    int device;
    int fd;     /* the memory file behind it, or -1 */
    int opened; /* times another process' handle is open */
    int own;    /* allocated here */
    uint64_t buffer;
    uint64_t handle; /* VMM: what it was mapped from */
    char key[64];
};

/* A cuMemCreate allocation. */
struct Allocation {
    int fd;
    uint64_t size;
    int device;
    int references;
};

extern pthread_mutex_t lock;
extern pid_t owner;
extern int device_count;
extern int peers;
extern struct Range* ranges;
extern uint64_t handles_opened;

int failing(const char* call);
int currentDevice(void);
struct Range* rangeAt(uint64_t address);
struct Range* add(uint64_t base, uint64_t size, int kind, int device);
void drop(struct Range* gone);
void* host(uint64_t address);
void clearStreams(void);
void forgetStreams(void);

#define BEGIN(call)                  \
    pthread_mutex_lock(&lock);       \
    int result = failing(call);      \
    if (owner != getpid()) {         \
        result = NOT_INITIALIZED;    \
    }                                \
    if (result != OK) {              \
        pthread_mutex_unlock(&lock); \
        return result;               \
    }
#define END(value)                   \
    do {                             \
        result = (value);            \
        pthread_mutex_unlock(&lock); \
        return result;               \
    } while (0)
