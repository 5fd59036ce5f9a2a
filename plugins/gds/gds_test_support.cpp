// See gds_test_support.h. Also hides from cuFile that this kernel has no /proc/modules, for which
// its driver would look for ever: a file of the program's own name for fopen counts before the C
// library's.
#include "gds_test_support.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <glob.h>
#include <unistd.h>

extern "C" __attribute__((visibility("default"))) FILE* fopen64(const char* path,
                                                                const char* mode) {
    using Open = FILE* (*)(const char*, const char*);
    static const auto real = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "fopen64"));
    const bool missing = std::strcmp(path, "/proc/modules") == 0 && access(path, R_OK) != 0;
    return real(missing ? "/dev/null" : path, mode);
}

extern "C" __attribute__((visibility("default"))) FILE* fopen(const char* path, const char* mode) {
    return fopen64(path, mode);
}

namespace nixl::gds {

std::string findRealCuFile() {
    setenv("CUFILE_LOGFILE_PATH", "/dev/null", 0);
    if (const char* given = std::getenv("NIXL_CUFILE_LIBRARY"); given != nullptr) {
        return {};
    }
    std::string reason = "no libcufile.so.0 (PyPI: nvidia-cufile) below " NIXL_GDS_TEST_PYTHON
                         "; NIXL_CUFILE_LIBRARY may name one";
    glob_t found{};
    const char* const pattern =
        NIXL_GDS_TEST_PYTHON "/lib/python3*/site-packages/nvidia/cu*/lib/libcufile.so.0";
    if (glob(pattern, 0, nullptr, &found) == 0 && found.gl_pathc > 0) {
        setenv("NIXL_CUFILE_LIBRARY", found.gl_pathv[0], 1);
        reason.clear();
    }
    globfree(&found);
    return reason;
}

}  // namespace nixl::gds
