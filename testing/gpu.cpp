// See gpu.h.
#include "testing/gpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>

#include "device/devices.h"

namespace nixl::testkit {

namespace {

constexpr uint64_t kGpuBit = 1ULL << 62;

}  // namespace

Devices& devices() {
    return device::devices();
}

const char* StandinGpus::library() {
    return NIXL_CUDA_STANDIN;
}

template <typename Function>
Function StandinGpus::symbol(const char* name) {
    auto* const found = reinterpret_cast<Function>(dlsym(library_, name));
    if (found == nullptr) {
        std::fprintf(stderr, "%s has no %s\n", library(), name);
        std::abort();
    }
    return found;
}

StandinGpus::StandinGpus() : library_(dlopen(library(), RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        std::abort();
    }
    setenv("NIXL_CUDA_LIBRARY", library(), 1);
    symbol<int (*)(unsigned)>("cuInit")(0);
}

StandinGpus::~StandinGpus() {
    fail(nullptr, 0, 0);
    hold(false);
    unsetenv("NIXL_CUDA_LIBRARY");
}

void StandinGpus::enter(int device) {
    void* context = nullptr;
    symbol<int (*)(void**, int)>("cuDevicePrimaryCtxRetain")(&context, device);
    symbol<int (*)(void*)>("cuCtxPushCurrent_v2")(context);
}

uint64_t StandinGpus::allocate(uint64_t size, int device) {
    uint64_t address = 0;
    void* context = nullptr;
    enter(device);
    symbol<int (*)(uint64_t*, size_t)>("cuMemAlloc_v2")(&address, size);
    symbol<int (*)(void**)>("cuCtxPopCurrent_v2")(&context);
    return address;
}

uint64_t StandinGpus::allocateManaged(uint64_t size, int device) {
    uint64_t address = 0;
    void* context = nullptr;
    enter(device);
    symbol<int (*)(uint64_t*, size_t, unsigned)>("cuMemAllocManaged")(&address, size, 1);
    symbol<int (*)(void**)>("cuCtxPopCurrent_v2")(&context);
    return address;
}

uint64_t StandinGpus::allocate(const std::string& content, int device) {
    const uint64_t address = allocate(content.size(), device);
    std::memcpy(at(address), content.data(), content.size());
    return address;
}

void StandinGpus::free(uint64_t address) {
    symbol<int (*)(uint64_t)>("cuMemFree_v2")(address);
}

char* StandinGpus::at(uint64_t address) {
    return reinterpret_cast<char*>(address & ~kGpuBit);
}

std::string StandinGpus::text(uint64_t address, uint64_t size) {
    return std::string(at(address), size);
}

int StandinGpus::current() {
    return symbol<int (*)()>("cudaStandinCurrent")();
}

void StandinGpus::fail(const char* call, int after, int error) {
    symbol<void (*)(const char*, int, int)>("cudaStandinFail")(call, after, error);
}

void StandinGpus::failOnce(const char* call, int after, int error) {
    symbol<void (*)(const char*, int, int)>("cudaStandinFailOnce")(call, after, error);
}

void StandinGpus::hold(bool hold) {
    symbol<void (*)(int)>("cudaStandinHold")(hold ? 1 : 0);
}

uint64_t StandinGpus::figure(int which) {
    return symbol<uint64_t (*)(int)>("cudaStandinFigure")(which);
}

}  // namespace nixl::testkit
