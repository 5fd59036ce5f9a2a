// Somewhere bytes can be: host memory, a file, an object. A test fills it and looks at it without
// the backend under test. Owned by the test; not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nixl/backend.h"

namespace nixl::testkit {

class Buffer {
  public:
    explicit Buffer(uint64_t size) : size_(size) {}
    virtual ~Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    uint64_t size() const { return size_; }
    // What to register; its metadata is valid as long as the buffer.
    virtual MemoryRegion region() const = 0;
    virtual void write(uint64_t offset, std::span<const uint8_t> bytes) = 0;
    // REQUIRES: offset + size() of `bytes` is within what is there
    virtual void read(uint64_t offset, std::span<uint8_t> bytes) const = 0;
    // Ends after `size` bytes from now on, so that reading beyond is short; false where it cannot.
    virtual bool truncate(uint64_t /*size*/) { return false; }

    void fill(uint64_t seed);  // in pieces of step()
    void clear();
    std::vector<uint8_t> bytes(uint64_t offset, uint64_t size) const;

  private:
    virtual uint64_t step() const { return 1 << 20; }

    const uint64_t size_;
};

// The bytes that fill(seed) puts at [offset, offset + size).
std::vector<uint8_t> pattern(uint64_t seed, uint64_t offset, uint64_t size);

// Host memory that begins `misalign` bytes after a page.
std::unique_ptr<Buffer> makeHostBuffer(uint64_t size, uint64_t misalign = 0);

enum class FileMode : uint8_t { DESCRIPTOR, PATH };
// A temporary file in `folder` (empty: TMPDIR, else /tmp), removed with the buffer. By descriptor
// number in deviceId, or by "rw:/path" in the metadata.
std::unique_ptr<Buffer> makeFileBuffer(uint64_t size,
                                       FileMode mode = FileMode::DESCRIPTOR,
                                       const std::string& folder = {},
                                       int open_flags = 0);

}  // namespace nixl::testkit
