// Page-locked host memory; see nixl/device.h.
#include <algorithm>
#include <bit>

#include <sys/mman.h>

#include "device/cuda_devices.h"

namespace nixl::device {

namespace {

constexpr unsigned kPortable = 1;  // of cuMemHostAlloc and cuMemHostRegister: for every GPU
constexpr uint64_t kSmallest = 64 << 10;
constexpr uint64_t kMostKept = 256 << 20;

class Pinned final : public DeviceStaging {
  public:
    Pinned(Driver& cuda, void* data, uint64_t size) : cuda_(cuda), data_(data), size_(size) {}
    ~Pinned() override {
        if (!cuda_.mine()) {
            return;
        }
        {
            const MutexLock lock(cuda_.stagingMutex);
            if (cuda_.stagingKept + size_ <= kMostKept) {
                cuda_.stagingKept += size_;
                cuda_.stagingFree[size_].push_back(data_);
                return;
            }
        }
        cuda_.hostFree(data_);
    }
    void* data() const override { return data_; }
    uint64_t size() const override { return size_; }

  private:
    Driver& cuda_;
    void* const data_;
    const uint64_t size_;
};

// Where page-locking is refused: slower, but it works.
class Ordinary final : public DeviceStaging {
  public:
    Ordinary(void* data, uint64_t size) : data_(data), size_(size) {}
    ~Ordinary() override { munmap(data_, size_); }
    void* data() const override { return data_; }
    uint64_t size() const override { return size_; }

  private:
    void* const data_;
    const uint64_t size_;
};

}  // namespace

Result<std::unique_ptr<DeviceStaging>> CudaDevices::staging(int device, uint64_t size) {
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    Driver& cuda = *found.value();
    if (size > (1ULL << 62)) {
        return Status::invalidParam("staging buffer of " + std::to_string(size) + " bytes");
    }
    const uint64_t whole = std::bit_ceil(std::max(size, kSmallest));
    {
        const MutexLock lock(cuda.stagingMutex);
        const auto kept = cuda.stagingFree.find(whole);
        if (kept != cuda.stagingFree.end() && !kept->second.empty()) {
            void* const data = kept->second.back();
            kept->second.pop_back();
            cuda.stagingKept -= whole;
            return std::unique_ptr<DeviceStaging>(std::make_unique<Pinned>(cuda, data, whole));
        }
    }
    const DeviceScope scope(*this, device);
    NIXL_RETURN_IF_ERROR(scope.status());
    void* data = nullptr;
    if (cuda.hostAlloc(&data, whole, kPortable) == 0) {
        return std::unique_ptr<DeviceStaging>(std::make_unique<Pinned>(cuda, data, whole));
    }
    data = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return Status::backend("no memory for a staging buffer of " + std::to_string(whole) +
                               " bytes");
    }
    return std::unique_ptr<DeviceStaging>(std::make_unique<Ordinary>(data, whole));
}

Status CudaDevices::pin(int device, void* host, uint64_t size) {
    const DeviceScope scope(*this, device);
    NIXL_RETURN_IF_ERROR(scope.status());
    Result<Driver*> found = driver();
    if (!found.ok()) {
        return found.status();
    }
    if (const int result = found.value()->hostRegister(host, size, kPortable); result != 0) {
        return found.value()->failure("cuMemHostRegister", result);
    }
    return {};
}

void CudaDevices::unpin(void* host) {
    std::string reason;
    if (Driver* const cuda = Driver::get(reason); cuda != nullptr) {
        cuda->hostUnregister(host);
    }
}

}  // namespace nixl::device
