// Opening the CUDA driver; see driver.h.
#include "device/driver.h"

#include <cstdlib>
#include <type_traits>

#include <dlfcn.h>
#include <unistd.h>

namespace nixl::device {

namespace {

constexpr unsigned kNonBlocking = 1;     // CU_STREAM_NON_BLOCKING
constexpr unsigned kBlockingNoTime = 3;  // CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING
constexpr size_t kKeptLanes = 16;        // for each GPU

const char* libraryName() {
    const char* const name = getenv("NIXL_CUDA_LIBRARY");
    return name != nullptr && *name != '\0' ? name : "libcuda.so.1";
}

}  // namespace

// The name of a function that the library lacks, or null.
const char* Driver::load(void* library) {
// NOLINTBEGIN(bugprone-macro-parentheses): a name, declared and assigned
#define NIXL_CUDA_LOAD(member, symbol, parameters)                                                \
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(dlsym(library, symbol)); \
    if (member == nullptr) {                                                                      \
        return symbol;                                                                            \
    }
    NIXL_CUDA_FUNCTIONS(NIXL_CUDA_LOAD)
#undef NIXL_CUDA_LOAD
    // NOLINTEND(bugprone-macro-parentheses)
    exchangeCaptureMode_ =
        reinterpret_cast<int (*)(int*)>(dlsym(library, "cuThreadExchangeStreamCaptureMode"));
    return nullptr;
}

// Without a lock, which a thread of the parent might hold at a fork. Two threads may open the
// driver at once; what the first has made counts, and lives as long as the process.
Driver* Driver::get(std::string& reason) {
    struct Made {
        Driver* driver;
        const Made* before;  // the parent's: the driver does not work in a forked child
    };
    static constinit std::atomic<const Made*> current{nullptr};
    const Made* now = current.load(std::memory_order_acquire);
    if (now != nullptr && now->driver->mine()) {
        return now->driver;
    }
    Driver* const made = open(reason);
    if (made == nullptr) {
        return nullptr;
    }
    const auto* const mine = new Made{made, now};
    if (current.compare_exchange_strong(now, mine)) {
        return made;
    }
    delete mine;
    delete made;
    return now->driver;
}

Driver* Driver::open(std::string& reason) {
    void* const library = dlopen(libraryName(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* const why = dlerror();
        reason = std::string("no CUDA driver: ") + (why != nullptr ? why : libraryName());
        return nullptr;
    }
    auto* const made = new Driver(getpid());
    if (const char* const missing = made->load(library); missing != nullptr) {
        reason = std::string("the CUDA driver ") + libraryName() + " has no " + missing;
        delete made;
        return nullptr;
    }
    if (const int result = made->init(0); result != 0) {
        reason = "the CUDA driver cannot be used: " + made->text("cuInit", result);
        delete made;
        return nullptr;
    }
    return made;
}

bool Driver::mine() const noexcept {
    return process_ == getpid();
}

std::string Driver::text(const char* call, int result) const {
    const char* message = nullptr;
    errorString(result, &message);
    return std::string(call) + ": " +
           (message != nullptr ? message : "error " + std::to_string(result));
}

Status Driver::failure(const char* call, int result) const {
    return Status::backend(text(call, result));
}

int Driver::captureMode(int mode) const {
    if (exchangeCaptureMode_ != nullptr) {
        exchangeCaptureMode_(&mode);
    }
    return mode;
}

Result<Context> Driver::context(int device) {
    if (device < 0 || device >= kMaxDevices) {
        return Status::notSupported("GPU " + std::to_string(device) + " does not exist");
    }
    Gpu& gpu = gpus_[static_cast<size_t>(device)];
    if (Context const known = gpu.context.load(); known != nullptr) {
        return known;
    }
    int handle = 0;
    if (const int result = deviceGet(&handle, device); result != 0) {
        return Status::notSupported("GPU " + std::to_string(device) + ": " +
                                    text("cuDeviceGet", result));
    }
    Context made = nullptr;
    if (const int result = retain(&made, handle); result != 0) {
        return Status::notSupported("GPU " + std::to_string(device) + ": " +
                                    text("cuDevicePrimaryCtxRetain", result));
    }
    gpu.context = made;
    return made;
}

// REQUIRES: the GPU's context is current
Result<Lane> Driver::takeLane(int device) {
    Gpu& gpu = gpus_[static_cast<size_t>(device)];
    {
        const MutexLock lock(gpu.mutex);
        if (!gpu.lanes.empty()) {
            const Lane lane = gpu.lanes.back();
            gpu.lanes.pop_back();
            return lane;
        }
    }
    Lane lane;
    if (const int result = streamCreate(&lane.stream, kNonBlocking); result != 0) {
        return failure("cuStreamCreate", result);
    }
    if (const int result = eventCreate(&lane.event, kBlockingNoTime); result != 0) {
        streamDestroy(lane.stream);
        return failure("cuEventCreate", result);
    }
    return lane;
}

void Driver::giveLane(int device, Lane lane, bool good) {
    Gpu& gpu = gpus_[static_cast<size_t>(device)];
    {
        const MutexLock lock(gpu.mutex);
        if (good && gpu.lanes.size() < kKeptLanes) {
            gpu.lanes.push_back(lane);
            return;
        }
    }
    eventDestroy(lane.event);
    streamDestroy(lane.stream);
}

}  // namespace nixl::device
