// What this backend needs of the CUDA driver beyond nixl/device.h: its kernel, streams to run it
// on, and the adapter's registers mapped for the GPU. Threads: any; a GPU's context must be the
// thread's (DeviceScope), unless said otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nixl/error.h"

#include "queue_abi.h"

namespace nixl::gpunetio {

class Cuda {
  public:
    // Without a context. NOT_SUPPORTED where the driver lacks something.
    static Result<std::unique_ptr<Cuda>> open();

    // Loads the kernel for the GPU of the current context, and makes streams.
    Result<void*> loadKernel();
    Result<void*> createStream();
    void destroyStream(void* stream);
    // Starts the kernel on a job; returns at once.
    Status launch(void* kernel, void* stream, Job* job);

    // The address by which the GPU reaches a page of registers that starts at `host`.
    Result<uint64_t> mapRegisters(void* host);
    void unmapRegisters(void* host);

    Status copy(uint64_t to, const void* from, uint64_t size);

  private:
    Cuda() = default;
    std::string text(const std::string& what, int error) const;

    int (*moduleLoad_)(void**, const void*) = nullptr;
    int (*moduleFunction_)(void**, void*, const char*) = nullptr;
    int (*launchKernel_)(void*,
                         unsigned,
                         unsigned,
                         unsigned,
                         unsigned,
                         unsigned,
                         unsigned,
                         unsigned,
                         void*,
                         void**,
                         void**) = nullptr;
    int (*streamCreate_)(void**, unsigned) = nullptr;
    int (*streamDestroy_)(void*) = nullptr;
    int (*hostRegister_)(void*, size_t, unsigned) = nullptr;
    int (*hostUnregister_)(void*) = nullptr;
    int (*hostDevicePointer_)(uint64_t*, void*, unsigned) = nullptr;
    int (*copy_)(uint64_t, uint64_t, size_t) = nullptr;
    int (*errorString_)(int, const char**) = nullptr;
};

}  // namespace nixl::gpunetio
