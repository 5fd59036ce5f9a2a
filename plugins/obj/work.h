// One post: the tasks it takes, what they report, and its end. Kept by its tasks.
//
// Threads: thread-safe; the completion is ended with no lock held.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nixl/backend.h"

#include "layout.h"
#include "s3.h"

namespace nixl::obj {

class Upload;

class Work final : public TaskSource, public std::enable_shared_from_this<Work> {
  public:
    // `layout` stays as long as the completion has not ended.
    Work(Store& store, const Layout& layout, OpType op, CompletionPtr completion);

    void start();
    // What has not begun will not; what has is asked to stop.
    void cancel();
    bool canceled() const { return completion_->cancelRequested() || stopped_.load(); }
    std::unique_ptr<Task> next() override;

    // A range, or an object, has ended: `failures` are its bytes that were not moved.
    void unitEnded(Status status, std::vector<SegmentFailure> failures);
    // The parts of an upload can be drawn.
    void offerParts(std::shared_ptr<Upload> upload, size_t parts);
    // Ranges of one object must be of one version of it: false where this ETag is another.
    bool sameVersion(uint32_t object, std::string_view etag);
    // Counts bytes of this post; may go back where a try begins anew.
    void moved(int64_t bytes) { bytes_.fetch_add(bytes, std::memory_order_relaxed); }
    uint64_t bytes() const { return static_cast<uint64_t>(bytes_.load(std::memory_order_relaxed)); }

    // A range of an object that was read whole, for the checksum over all of it.
    void checked(uint32_t object, uint64_t offset, uint64_t size, uint32_t crc);
    void wholeChecksum(uint32_t object, uint64_t size, std::string_view checksum);

    Store& store() const { return store_; }
    const Layout& layout() const { return layout_; }

  private:
    struct Part {
        uint64_t offset;
        uint64_t size;
        uint32_t crc;
    };
    // What is known of an object whose ranges are read one by one.
    struct Seen {
        std::string etag;
        std::string checksum;  // of `total` bytes, as S3 writes it
        uint64_t total = 0;
        std::vector<Part> parts;
    };
    std::string checkWhole();
    void finish();
    std::unique_ptr<Task> nextPart();

    Store& store_;
    const Layout& layout_;
    const OpType op_;
    const CompletionPtr completion_;
    std::atomic<bool> stopped_{false};
    std::atomic<int64_t> bytes_{0};

    std::mutex mutex_;  // guards what follows
    size_t begun_ = 0;
    size_t units_ = 0;  // ranges, or objects
    size_t left_ = 0;   // of them, not ended
    bool dropped_ = false;
    std::deque<std::shared_ptr<Upload>> uploads_;
    std::vector<Seen> seen_;
    std::vector<SegmentFailure> failures_;
    Status first_;
};

// The parts of pieces within [offset, offset + size), of which `done` bytes came, as failures.
std::vector<SegmentFailure> failuresOf(
    std::span<const Piece> pieces, uint64_t offset, uint64_t size, uint64_t done, int system_errno);

// The tasks, one for each kind of unit.
std::unique_ptr<Task> makeRangeTask(std::shared_ptr<Work> work, const Range& range);
std::unique_ptr<Task> makeWriteTask(std::shared_ptr<Work> work, const PlannedObject& object);
std::unique_ptr<Task> makePartTask(const std::shared_ptr<Upload>& upload);  // null: none left
std::unique_ptr<Task> makeMergeTask(std::shared_ptr<Work> work, const PlannedObject& object);

}  // namespace nixl::obj
