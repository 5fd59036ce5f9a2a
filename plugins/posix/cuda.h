// The few CUDA driver calls that staging GPU memory through host buffers takes. The driver is
// opened when GPU memory is first registered; nothing is linked.
//
// Threads: thread-safe. Copies are meant for the engines' own threads: they leave a context
// current.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <sys/uio.h>

namespace nixl::posix {

// One process-wide table of the driver's functions.
class Cuda {
  public:
    // Null with the reason where there is no usable driver; then the next call tries again.
    static const Cuda* get(std::string& reason);
    // Whether a driver seems to be here; cheap, opens nothing.
    static bool likely();

    // Makes GPU `device` ready for copies; a reason if that fails.
    std::string prepare(int device) const;
    // Between one host buffer and GPU ranges in order; a reason if that fails.
    std::string toHost(int device, void* host, std::span<const iovec> ranges) const;
    std::string toDevice(int device,
                         const void* host,
                         std::span<const iovec> ranges,
                         uint64_t bytes) const;
    // Page-locks a host buffer, which makes copies faster; without effect where it is refused.
    bool pin(int device, void* host, uint64_t size) const;
    void unpin(void* host) const;

  private:
    struct Functions;
    explicit Cuda(const Functions* functions) : functions_(functions) {}
    static const Cuda* open(std::string& reason);
    std::string enter(int device) const;
    std::string text(const char* call, int result) const;

    const Functions* functions_;
};

}  // namespace nixl::posix
