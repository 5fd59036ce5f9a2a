// Opening libcuda.so.1 and copying; see cuda.h.
#include "cuda.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>

#include <dlfcn.h>
#include <unistd.h>

namespace nixl::posix {

namespace {

constexpr int kMaxDevices = 64;
constexpr unsigned kPortable = 1;  // CU_MEMHOSTREGISTER_PORTABLE: pinned for every context
// CU_STREAM_PER_THREAD: each engine thread has a stream of its own.
void* const kStream = reinterpret_cast<void*>(2);

const char* libraryName() {
    const char* name = getenv("NIXL_CUDA_LIBRARY");
    return name != nullptr && *name != '\0' ? name : "libcuda.so.1";
}

}  // namespace

struct Cuda::Functions {
    int (*init)(unsigned) = nullptr;
    int (*deviceGet)(int*, int) = nullptr;
    int (*retain)(void**, int) = nullptr;
    int (*setCurrent)(void*) = nullptr;
    int (*toHost)(void*, uint64_t, size_t, void*) = nullptr;
    int (*toDevice)(uint64_t, const void*, size_t, void*) = nullptr;
    int (*synchronize)(void*) = nullptr;
    int (*hostRegister)(void*, size_t, unsigned) = nullptr;
    int (*hostUnregister)(void*) = nullptr;
    int (*errorString)(int, const char**) = nullptr;
    mutable std::array<std::atomic<void*>, kMaxDevices> contexts{};

    // The name of a function that the library lacks, or null.
    const char* load(void* library) {
        const auto find = [library](auto& function, const char* name) -> const char* {
            function =
                reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            return function == nullptr ? name : nullptr;
        };
        for (const char* missing :
             {find(init, "cuInit"), find(deviceGet, "cuDeviceGet"),
              find(retain, "cuDevicePrimaryCtxRetain"), find(setCurrent, "cuCtxSetCurrent"),
              find(toHost, "cuMemcpyDtoHAsync_v2"), find(toDevice, "cuMemcpyHtoDAsync_v2"),
              find(synchronize, "cuStreamSynchronize"), find(hostRegister, "cuMemHostRegister_v2"),
              find(hostUnregister, "cuMemHostUnregister"), find(errorString, "cuGetErrorString")}) {
            if (missing != nullptr) {
                return missing;
            }
        }
        return nullptr;
    }
};

// Without a lock, which a thread of the parent might hold at a fork. Two threads may open the
// driver at once; what the first has made counts, and lives as long as the process.
const Cuda* Cuda::get(std::string& reason) {
    struct Made {
        pid_t process;
        const Cuda* cuda;
        const Made* before;  // the parent's: the driver does not work in a forked child
    };
    static constinit std::atomic<const Made*> current{nullptr};
    const Made* now = current.load(std::memory_order_acquire);
    if (now != nullptr && now->process == getpid()) {
        return now->cuda;
    }
    const Cuda* const made = open(reason);
    if (made == nullptr) {
        return nullptr;
    }
    const auto* const mine = new Made{getpid(), made, now};
    if (current.compare_exchange_strong(now, mine)) {
        return made;
    }
    delete mine;
    delete made->functions_;
    delete made;
    return now->cuda;
}

const Cuda* Cuda::open(std::string& reason) {
    void* library = dlopen(libraryName(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* why = dlerror();
        reason = std::string("no CUDA driver: ") + (why != nullptr ? why : libraryName());
        return nullptr;
    }
    auto* functions = new Functions;
    if (const char* missing = functions->load(library); missing != nullptr) {
        reason = std::string(libraryName()) + " has no " + missing;
        delete functions;
        return nullptr;
    }
    auto* made = new Cuda(functions);
    if (const int result = functions->init(0); result != 0) {
        reason = made->text("cuInit", result);
        delete made;
        delete functions;
        return nullptr;
    }
    return made;
}

bool Cuda::likely() {
    return getenv("NIXL_CUDA_LIBRARY") != nullptr || access("/dev/nvidiactl", F_OK) == 0;
}

std::string Cuda::text(const char* call, int result) const {
    const char* message = nullptr;
    functions_->errorString(result, &message);
    return std::string(call) + ": " +
           (message != nullptr ? message : "error " + std::to_string(result));
}

std::string Cuda::prepare(int device) const {
    if (device < 0 || device >= kMaxDevices) {
        return "GPU " + std::to_string(device) + " does not exist";
    }
    if (functions_->contexts[device].load() != nullptr) {
        return {};
    }
    int handle = 0;
    if (const int result = functions_->deviceGet(&handle, device); result != 0) {
        return text("cuDeviceGet", result);
    }
    void* context = nullptr;
    if (const int result = functions_->retain(&context, handle); result != 0) {
        return text("cuDevicePrimaryCtxRetain", result);
    }
    functions_->contexts[device] = context;
    return {};
}

std::string Cuda::enter(int device) const {
    const int result = functions_->setCurrent(functions_->contexts[device].load());
    return result == 0 ? std::string() : text("cuCtxSetCurrent", result);
}

std::string Cuda::toHost(int device, void* host, std::span<const iovec> ranges) const {
    if (std::string reason = enter(device); !reason.empty()) {
        return reason;
    }
    auto* target = static_cast<char*>(host);
    for (const iovec& range : ranges) {
        const auto source = reinterpret_cast<uint64_t>(range.iov_base);
        if (const int result = functions_->toHost(target, source, range.iov_len, kStream);
            result != 0) {
            return text("cuMemcpyDtoHAsync", result);
        }
        target += range.iov_len;
    }
    const int result = functions_->synchronize(kStream);
    return result == 0 ? std::string() : text("cuStreamSynchronize", result);
}

std::string Cuda::toDevice(int device,
                           const void* host,
                           std::span<const iovec> ranges,
                           uint64_t bytes) const {
    if (std::string reason = enter(device); !reason.empty()) {
        return reason;
    }
    const auto* source = static_cast<const char*>(host);
    for (const iovec& range : ranges) {
        const uint64_t size = std::min<uint64_t>(bytes, range.iov_len);
        if (size == 0) {
            break;
        }
        const auto target = reinterpret_cast<uint64_t>(range.iov_base);
        if (const int result = functions_->toDevice(target, source, size, kStream); result != 0) {
            return text("cuMemcpyHtoDAsync", result);
        }
        source += size;
        bytes -= size;
    }
    const int result = functions_->synchronize(kStream);
    return result == 0 ? std::string() : text("cuStreamSynchronize", result);
}

bool Cuda::pin(int device, void* host, uint64_t size) const {
    return enter(device).empty() && functions_->hostRegister(host, size, kPortable) == 0;
}

void Cuda::unpin(void* host) const {
    functions_->hostUnregister(host);
}

}  // namespace nixl::posix
