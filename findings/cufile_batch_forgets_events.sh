#!/usr/bin/env bash
# cuFile 1.20.0 (nvidia-cufile 1.20.0.107 of the package index), seen 2026-11: a batch of which one
# request fails.
#
# Eight writes of 64 KiB are submitted as one batch; the second goes beyond the file size that the
# process may have (RLIMIT_FSIZE), all others are fine. Expected: eight events, one of them FAILED,
# as each event has a status of its own. What happens: cuFileBatchIOGetStatus itself returns 5044,
# its count stays what was asked for, the array has the events up to the failed one, and the others
# never come, though their bytes are written. Whoever waits for as many events as there are requests
# waits for ever; whoever takes the call's error for the batch's believes that nothing was written.
#
# The program answers for /proc/modules where the kernel has none, else the driver does not open.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install nvidia-cufile==1.20.0.107
library=$(find "$folder/venv" -name libcufile.so.0)
cat > "$folder/batch.c" <<'PROGRAM'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

FILE* fopen64(const char* path, const char* mode) {
    FILE* (*real)(const char*, const char*) = (void*)dlsym(RTLD_NEXT, "fopen64");
    const int missing = strcmp(path, "/proc/modules") == 0 && access(path, R_OK) != 0;
    return real(missing ? "/dev/null" : path, mode);
}

typedef struct { int code, cuda; } Error;
typedef struct { int type; union { int fd; void* p; } of; const void* operations; } Descriptor;
typedef struct {
    int mode;
    struct { void* memory; off_t file_offset, memory_offset; size_t size; } io;
    void* file;
    int op;
    void* cookie;
} Request;
typedef struct { void* cookie; int status; size_t result; } Event;

enum { COUNT = 8, SIZE = 65536 };

int main(int count, char** words) {
    void* library = dlopen(words[1], RTLD_NOW);
    Error (*open_driver)(void) = (void*)dlsym(library, "cuFileDriverOpen");
    Error (*take)(void**, Descriptor*) = (void*)dlsym(library, "cuFileHandleRegister");
    Error (*set_up)(void**, unsigned) = (void*)dlsym(library, "cuFileBatchIOSetUp");
    Error (*submit)(void*, unsigned, Request*, unsigned) =
        (void*)dlsym(library, "cuFileBatchIOSubmit");
    Error (*status)(void*, unsigned, unsigned*, Event*, struct timespec*) =
        (void*)dlsym(library, "cuFileBatchIOGetStatus");
    void (*destroy)(void*) = (void*)dlsym(library, "cuFileBatchIODestroy");
    int version = 0;
    ((Error (*)(int*))dlsym(library, "cuFileGetVersion"))(&version);
    signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit = {COUNT * SIZE, COUNT * SIZE};
    if (open_driver().code != 0) {
        puts("SKIP: the driver does not open here");
        return 0;
    }
    const int fd = open(words[2], O_RDWR | O_CREAT | O_DIRECT, 0600);
    Descriptor descriptor = {1, {fd}, NULL};
    void *file = NULL, *batch = NULL;
    if (fd < 0 || take(&file, &descriptor).code != 0 || set_up(&batch, COUNT).code != 0) {
        puts("SKIP: cuFile does not take this file");
        return 0;
    }
    setrlimit(RLIMIT_FSIZE, &limit);
    char* memory = aligned_alloc(4096, COUNT * SIZE);
    Request requests[COUNT];
    for (long i = 0; i < COUNT; ++i) {
        memset(memory + i * SIZE, 'a' + (int)i, SIZE);
        const off_t at = i == 1 ? 2L * COUNT * SIZE : i * SIZE;
        requests[i] = (Request){1, {memory + i * SIZE, at, 0, SIZE}, file, 1, (void*)(i + 1)};
    }
    const int submitted = submit(batch, COUNT, requests, 0).code;
    int events = 0, failed = 0, code = 0;
    const time_t end = time(NULL) + 3;
    while (submitted == 0 && events < COUNT && time(NULL) < end) {
        Event array[COUNT];
        unsigned number = COUNT;
        struct timespec wait = {0, 100000000};
        memset(array, 0, sizeof array);
        const int now = status(batch, 1, &number, array, &wait).code;
        code = now != 0 ? now : code;
        for (unsigned i = 0; i < number; ++i) {
            events += array[i].cookie != NULL;
            failed += array[i].status == 0x40;
        }
    }
    destroy(batch);
    int written = 0;
    for (int i = 0; i < COUNT; ++i) {
        char byte = 0;
        const int other = open(words[2], O_RDONLY);
        written += pread(other, &byte, 1, (off_t)i * SIZE) == 1 && byte == 'a' + i;
        close(other);
    }
    printf("cuFile %d: submit %d, status %d, %d events of %d (%d failed), %d pieces written\n",
           version, submitted, code, events, COUNT, failed, written);
    return submitted == 0 && code == 5044 && events < COUNT && failed == 1 && written == 7 ? 0 : 1;
}
PROGRAM
cc -w -O1 -o "$folder/batch" "$folder/batch.c" -ldl
file=$(mktemp /dev/shm/finding.XXXXXX)
trap 'rm -rf "$folder" "$file"' EXIT
cd "$folder"
./batch "$library" "$file" || { echo "CHANGED"; exit 1; }
