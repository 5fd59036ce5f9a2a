// User memory as host bytes. Host memory is copied by the kernel, which says where it is not there
// any more or may not be written; memory of a GPU goes through two page-locked buffers, so that one
// is copied while the other is sent or filled.
//
// Threads: of one task; nothing here is thread-safe.
#pragma once

#include <array>
#include <cerrno>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nixl/device.h"

#include "layout.h"

namespace nixl::obj {

inline constexpr uint64_t kStagingBytes = 1 << 20;  // of each of the two buffers
inline constexpr uint64_t kHostBytes = 64 << 10;    // of host memory shown at once

// Of a failure to reach user memory.
inline int errnoOf(const Status& status) {
    return status.systemErrno() != 0 ? status.systemErrno() : EIO;
}

// The bytes of [first, first + size) of an object's pieces, one after the other. After a failure
// there are none any more, and status() says why.
class PieceReader {
  public:
    PieceReader(Devices& devices, std::span<const Piece> pieces, uint64_t first, uint64_t size)
        : devices_(devices), cursor_(pieces, first), end_(first + size) {}
    ~PieceReader() { stop(); }
    PieceReader(const PieceReader&) = delete;
    PieceReader& operator=(const PieceReader&) = delete;

    void seek(uint64_t offset) { cursor_.seek(offset); }
    uint64_t offset() const { return cursor_.offset(); }
    // At the place, up to `most` bytes; empty at the end, in a gap and after a failure.
    std::span<const char> here(uint64_t most);
    void advance(uint64_t bytes) { cursor_.advance(bytes); }
    // Copies up to `most` bytes from the place on, and advances by them; 0 where here() is empty.
    uint64_t copy(char* to, uint64_t most);
    const Status& status() const { return status_; }
    // Waits until no copy touches user memory; called before the transfer is told to have ended.
    void stop();

  private:
    struct Slot {
        std::unique_ptr<DeviceStaging> buffer;
        int device = -1;
        std::shared_ptr<DeviceBatch> batch;  // under way
        uint64_t begin = 0;
        uint64_t size = 0;
        bool holds(uint64_t offset) const { return offset >= begin && offset - begin < size; }
    };
    bool load(Slot& slot, uint64_t offset);
    bool settle(Slot& slot);
    bool failed(const Status& status);

    Devices& devices_;
    PieceCursor cursor_;
    const uint64_t end_;
    std::array<Slot, 2> slots_;
    std::vector<char> host_;  // what here() shows of host memory
    Status status_;
};

// Writes bytes where they belong.
class PieceWriter {
  public:
    explicit PieceWriter(Devices& devices) : devices_(devices) {}
    ~PieceWriter() { stop(); }
    PieceWriter(const PieceWriter&) = delete;
    PieceWriter& operator=(const PieceWriter&) = delete;

    // False after a failure.
    bool put(const PieceCursor::Place& to, const char* data);
    // Waits until all of it is in place; false where some could not be brought there.
    bool flush();
    // The same, forgetting failures and what has not begun.
    void stop();
    const Status& status() const { return status_; }

  private:
    struct Slot {
        std::unique_ptr<DeviceStaging> buffer;
        int device = -1;
        uint64_t used = 0;
        std::vector<DeviceCopy> copies;
        std::shared_ptr<DeviceBatch> batch;
    };
    bool begin(int device);
    bool submit();
    bool settle(Slot& slot);
    bool failed(const Status& status);

    Devices& devices_;
    std::array<Slot, 2> slots_;
    size_t current_ = 0;
    Status status_;
};

}  // namespace nixl::obj
