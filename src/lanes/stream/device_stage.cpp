// See device_stage.h.
#include "lanes/stream/device_stage.h"

#include <algorithm>
#include <cerrno>

#include "nixl/user_memory.h"

#include "device/devices.h"

namespace nixl::peer {

Status DeviceStage::begin(std::span<const MemoryRun> runs,
                          std::span<const memory::RegionPtr> regions,
                          uint64_t bytes) {
    const auto gpu = std::find_if(regions.begin(), regions.end(),
                                  [](const auto& region) { return region->type == MemType::VRAM; });
    device_ = static_cast<int>((*gpu)->deviceId);
    Result<std::unique_ptr<DeviceStaging>> buffer = device::devices().staging(device_, bytes);
    if (!buffer.ok()) {
        return buffer.status();
    }
    buffer_ = std::move(buffer).value();
    runs_ = runs;
    regions_ = regions;
    staged_ = {};
    staged_.address = reinterpret_cast<uint64_t>(buffer_->data());
    staged_.size = bytes;
    return {};
}

void DeviceStage::end() {
    buffer_.reset();
    runs_ = {};
    regions_ = {};
}

Status DeviceStage::fill() {
    uint64_t done = 0;
    return move(true, staged_.size, done);
}

Status DeviceStage::drain(uint64_t bytes, uint64_t& done) {
    return move(false, bytes, done);
}

Status DeviceStage::move(bool to_buffer, uint64_t bytes, uint64_t& done) {
    std::vector<DeviceCopy> copies;
    std::vector<uint64_t> begins;
    const uint64_t buffer = staged_.address;
    uint64_t at = 0;
    done = 0;
    for (const MemoryRun& run : runs_) {
        const bool gpu = regions_[run.region]->type == MemType::VRAM;
        const bool dense = run.stride == run.size;
        for (uint64_t step = 0; step < run.count && at < bytes; step += dense ? run.count : 1) {
            const uint64_t size = std::min(dense ? run.bytes() : run.size, bytes - at);
            const uint64_t place = run.address + step * run.stride;
            if (gpu) {
                copies.push_back(to_buffer ? DeviceCopy{buffer + at, place, size}
                                           : DeviceCopy{place, buffer + at, size});
                begins.push_back(at);
            } else {
                const iovec vector{reinterpret_cast<void*>(place), size};
                auto* const staged = reinterpret_cast<char*>(buffer + at);
                const bool copied = to_buffer ? copyFromUser(staged, {&vector, 1}, size)
                                              : copyToUser({&vector, 1}, staged, size);
                if (!copied) {
                    return Status::backend("registered memory is not mapped", EFAULT);
                }
            }
            at += size;
        }
    }
    Result<std::shared_ptr<DeviceBatch>> batch = device::devices().copy(copies, device_);
    if (!batch.ok()) {
        return batch.status();
    }
    const Status status = batch.value()->wait();
    const size_t good = batch.value()->copied();
    done = good < copies.size() ? begins[good] : at;
    return status;
}

}  // namespace nixl::peer
