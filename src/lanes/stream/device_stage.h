// A request whose memory is, wholly or in part, that of GPUs: its bytes pass through one
// page-locked buffer, which the connection sends from or receives into. One owner at a time.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nixl/device.h"

#include "lanes/stream/wire.h"
#include "memory/region.h"

namespace nixl::peer {

class DeviceStage {
  public:
    // For the runs of a request and their regions, which must stay until end().
    Status begin(std::span<const MemoryRun> runs,
                 std::span<const memory::RegionPtr> regions,
                 uint64_t bytes);
    void end();
    bool used() const { return buffer_ != nullptr; }
    // The buffer, in place of the runs.
    std::span<const MemoryRun> runs() const { return {&staged_, 1}; }

    // Between the buffer and the first `bytes` of the runs. Waits for the copies. On error `done`
    // says how much from the start on is in place. REQUIRES: regions pinned
    Status fill();
    Status drain(uint64_t bytes, uint64_t& done);

  private:
    Status move(bool to_buffer, uint64_t bytes, uint64_t& done);

    std::unique_ptr<DeviceStaging> buffer_;
    MemoryRun staged_;
    std::span<const MemoryRun> runs_;
    std::span<const memory::RegionPtr> regions_;
    int device_ = 0;
};

}  // namespace nixl::peer
