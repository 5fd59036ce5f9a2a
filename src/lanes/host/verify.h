// Checks a copy between processes: reads the other process's side once more and compares it with
// this side. It finds a copy that went wrong, and memory that somebody changed meanwhile. One
// thread at a time.
#pragma once

#include <memory>

#include "lanes/host/pages.h"

namespace nixl::peer {

class HostVerifier {
  public:
    // `good`: the bytes before the first that differs.
    Status verify(HostPeer& host, const HostPeer::Batch& batch, uint64_t& good);

  private:
    static constexpr size_t kStep = 64 << 10;
    std::unique_ptr<char[]> there_;
    std::unique_ptr<char[]> here_;
};

}  // namespace nixl::peer
