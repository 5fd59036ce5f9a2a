// See cuda.h.
#include "cuda.h"

#include <cstdlib>
#include <fstream>
#include <iterator>

#include <dlfcn.h>

#include "kernel_image.h"

namespace nixl::gpunetio {
namespace {

constexpr unsigned kThreads = 128;
constexpr uint64_t kPage = 4096;
constexpr unsigned kPortable = 1;
constexpr unsigned kMapped = 2;
constexpr unsigned kRegisters = 4;  // CU_MEMHOSTREGISTER_IOMEMORY
constexpr unsigned kNonBlocking = 1;

template <typename Function>
void load(void* handle, const char* name, Function& function, std::string& missing) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) {
        missing += std::string(" ") + name;
    }
}

// The kernel's code: of the file that NIXL_GPUNETIO_KERNELS names, else what this was built with.
Result<std::vector<char>> kernelImage() {
    const char* const path = std::getenv("NIXL_GPUNETIO_KERNELS");
    if (path != nullptr && *path != '\0') {
        std::ifstream file(path, std::ios::binary);
        std::vector<char> image{std::istreambuf_iterator<char>(file), {}};
        if (!file || image.empty()) {
            return Status::notFound("GPUNETIO: NIXL_GPUNETIO_KERNELS names " + std::string(path) +
                                    ", which cannot be read");
        }
        image.push_back('\0');  // PTX is text
        return image;
    }
    if (kKernelImageSize == 0) {
        return Status::notSupported(
            "GPUNETIO: this build has no kernels for GPUs, since no nvcc was found; build with the "
            "CUDA toolkit, or name a fatbin of them in NIXL_GPUNETIO_KERNELS");
    }
    return std::vector<char>(kKernelImage, kKernelImage + kKernelImageSize);
}

}  // namespace

std::string Cuda::text(const std::string& what, int error) const {
    const char* known = nullptr;
    errorString_(error, &known);
    return "GPUNETIO: " + what + ": CUDA error " + std::to_string(error) +
           (known == nullptr ? "" : std::string(" (") + known + ")");
}

Result<std::unique_ptr<Cuda>> Cuda::open() {
    const char* const named = std::getenv("NIXL_CUDA_LIBRARY");
    const char* const path = named != nullptr && *named != '\0' ? named : "libcuda.so.1";
    void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        return Status::notSupported("GPUNETIO: no CUDA driver: " + std::string(why ? why : path));
    }
    std::unique_ptr<Cuda> cuda(new Cuda);
    std::string missing;
    load(handle, "cuModuleLoadData", cuda->moduleLoad_, missing);
    load(handle, "cuModuleGetFunction", cuda->moduleFunction_, missing);
    load(handle, "cuLaunchKernel", cuda->launchKernel_, missing);
    load(handle, "cuStreamCreate", cuda->streamCreate_, missing);
    load(handle, "cuStreamDestroy_v2", cuda->streamDestroy_, missing);
    load(handle, "cuMemHostRegister_v2", cuda->hostRegister_, missing);
    load(handle, "cuMemHostUnregister", cuda->hostUnregister_, missing);
    load(handle, "cuMemHostGetDevicePointer_v2", cuda->hostDevicePointer_, missing);
    load(handle, "cuMemcpy", cuda->copy_, missing);
    load(handle, "cuGetErrorString", cuda->errorString_, missing);
    if (!missing.empty()) {
        return Status::notSupported("GPUNETIO: the CUDA driver is too old: it has no" + missing);
    }
    return cuda;
}

Result<void*> Cuda::loadKernel() {
    Result<std::vector<char>> image = kernelImage();
    if (!image.ok()) {
        return image.status();
    }
    void* module = nullptr;
    void* kernel = nullptr;
    int error = moduleLoad_(&module, image.value().data());
    if (error == 0) {
        error = moduleFunction_(&kernel, module, "nixlGpunetioMove");
    }
    if (error != 0) {
        return Status::backend(text("loading the kernel", error));
    }
    return kernel;
}

Result<void*> Cuda::createStream() {
    void* stream = nullptr;
    const int error = streamCreate_(&stream, kNonBlocking);
    if (error != 0) {
        return Status::backend(text("making a stream", error));
    }
    return stream;
}

void Cuda::destroyStream(void* stream) {
    streamDestroy_(stream);
}

Status Cuda::launch(void* kernel, void* stream, Job* job) {
    void* arguments[] = {static_cast<void*>(&job)};
    const int error = launchKernel_(kernel, 1, 1, 1, kThreads, 1, 1, 0, stream, arguments, nullptr);
    return error == 0 ? Status() : Status::backend(text("starting the kernel", error));
}

Result<uint64_t> Cuda::mapRegisters(void* host) {
    int error = hostRegister_(host, kPage, kPortable | kMapped | kRegisters);
    uint64_t address = 0;
    if (error == 0) {
        error = hostDevicePointer_(&address, host, 0);
        if (error != 0) {
            hostUnregister_(host);
        }
    }
    if (error != 0) {
        return Status::backend(
            text("mapping the adapter's doorbell for the GPU (it needs the driver's option "
                 "PeerMappingOverride=1, or a newer driver)",
                 error));
    }
    return address;
}

void Cuda::unmapRegisters(void* host) {
    hostUnregister_(host);
}

Status Cuda::copy(uint64_t to, const void* from, uint64_t size) {
    const int error = copy_(to, reinterpret_cast<uint64_t>(from), size);
    return error == 0 ? Status() : Status::backend(text("writing to GPU memory", error));
}

}  // namespace nixl::gpunetio
