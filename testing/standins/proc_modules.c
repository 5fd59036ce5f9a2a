// Preloaded: /proc/modules as cuFile's driver sees it. Where this kernel has none it is empty (the
// driver would look for its end for ever); with NIXL_STANDIN_NO_MODULES it is missing everywhere.
// Tests only; thread-safe.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE* openFile(const char* name, const char* path, const char* mode) {
    FILE* (*real)(const char*, const char*) =
        (FILE * (*)(const char*, const char*)) dlsym(RTLD_NEXT, name);
    if (strcmp(path, "/proc/modules") == 0) {
        if (getenv("NIXL_STANDIN_NO_MODULES") != NULL) {
            errno = ENOENT;
            return NULL;
        }
        if (access(path, R_OK) != 0) {
            return real("/dev/null", mode);
        }
    }
    return real(path, mode);
}

FILE* fopen(const char* path, const char* mode) {
    return openFile("fopen", path, mode);
}

FILE* fopen64(const char* path, const char* mode) {
    return openFile("fopen64", path, mode);
}
