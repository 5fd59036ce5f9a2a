// GPUs for tests: the stand-in of the CUDA driver, whose memory is memory of this host. Make one
// before anything opens the driver; one thread.
#pragma once

#include <cstdint>
#include <string>

#include "nixl/device.h"

namespace nixl::testkit {

// Those of this process, for services.
Devices& devices();

class StandinGpus {
  public:
    // Points NIXL_CUDA_LIBRARY at the stand-in for as long as it lives.
    StandinGpus();
    ~StandinGpus();
    StandinGpus(const StandinGpus&) = delete;
    StandinGpus& operator=(const StandinGpus&) = delete;

    static const char* library();

    // As a program would do with the driver; an address of the GPU. 0 where it fails.
    uint64_t allocate(uint64_t size, int device = 0);
    uint64_t allocateManaged(uint64_t size, int device = 0);
    void free(uint64_t address);
    uint64_t allocate(const std::string& content, int device = 0);

    // What lies at an address, seen without a copy of the driver.
    static char* at(uint64_t address);
    static std::string text(uint64_t address, uint64_t size);

    // The GPU whose context the calling thread has; -1: none.
    int current();

    // See the ends of standins/cuda_driver.c and cuda_streams.c.
    void fail(const char* call, int after, int error);
    void failOnce(const char* call, int after, int error);
    void hold(bool hold);
    uint64_t copies() { return figure(0); }
    uint64_t bytes() { return figure(1); }
    uint64_t opened() { return figure(2); }
    uint64_t ranges() { return figure(3); }

  private:
    template <typename Function>
    Function symbol(const char* name);
    void enter(int device);
    uint64_t figure(int which);

    void* library_ = nullptr;
};

}  // namespace nixl::testkit
