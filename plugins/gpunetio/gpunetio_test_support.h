// The stand-ins of the CUDA driver and of DOCA for tests: make one before the backend. Once DOCA is
// open it stays so in this process, with what the environment said then.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "nixl/plugin.h"

#include "testing/gpu.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl::gpunetio {

class Standins {
  public:
    Standins() {
        setenv("NIXL_DOCA_LIBRARY", NIXL_DOCA_STANDIN, 1);
        setenv("CUDA_STANDIN_KERNELS", NIXL_DOCA_STANDIN, 1);
        setenv("NIXL_GPUNETIO_KERNELS", "/proc/self/comm", 1);  // not looked at
        library_ = dlopen(NIXL_DOCA_STANDIN, RTLD_NOW | RTLD_LOCAL);
    }
    ~Standins() {
        hold(false);
        unsetenv("DOCA_STANDIN_FAIL");
    }
    Standins(const Standins&) = delete;
    Standins& operator=(const Standins&) = delete;

    testkit::StandinGpus gpus;

    void hold(bool hold) {
        reinterpret_cast<void (*)(int)>(dlsym(library_, "docaStandinHold"))(hold ? 1 : 0);
    }
    // 0: bytes moved, 1: queue pairs, 2: registrations.
    uint64_t figure(int which) {
        return reinterpret_cast<uint64_t (*)(int)>(dlsym(library_, "docaStandinFigure"))(which);
    }

  private:
    void* library_ = nullptr;
};

}  // namespace nixl::gpunetio
