// See work.h.
#include "work.h"

#include <algorithm>

#include "nixl/checksum.h"

#include "crypto.h"

namespace nixl::obj {

namespace {

constexpr size_t kMaxFailures = 1 << 20;  // of one post

}  // namespace

std::vector<SegmentFailure> failuresOf(std::span<const Piece> pieces,
                                       uint64_t offset,
                                       uint64_t size,
                                       uint64_t done,
                                       int system_errno) {
    std::vector<SegmentFailure> failures;
    const uint64_t end = offset + size;
    const uint64_t reached = offset + done;
    for (const Piece& piece : pieces) {
        const uint64_t first = std::max(piece.offset, offset);
        const uint64_t last = std::min(piece.offset + piece.size, end);
        if (piece.offset >= end || failures.size() == kMaxFailures) {
            break;
        }
        if (last <= first || last <= reached) {
            continue;
        }
        const uint64_t there = reached > first ? reached - first : 0;
        failures.push_back(
            {piece.planOffset + (first - piece.offset), last - first, there, system_errno});
    }
    return failures;
}

Work::Work(Store& store, const Layout& layout, OpType op, CompletionPtr completion)
    : store_(store),
      layout_(layout),
      op_(op),
      completion_(std::move(completion)),
      units_(op == OpType::READ ? layout.ranges.size() : layout.objects.size()),
      left_(units_),
      seen_(op == OpType::READ ? layout.objects.size() : 0) {}

void Work::start() {
    if (units_ == 0) {
        completion_->succeed();
        return;
    }
    if (op_ == OpType::READ || !store_.settings.mergeWrites) {
        store_.scheduler.add(shared_from_this(), units_);
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        if (stopped_) {
            return;  // a cancel was quicker, and has ended it
        }
        begun_ = units_;
    }
    for (size_t i = 0; i < units_; ++i) {  // the last may end this
        const PlannedObject& object = layout_.objects[i];
        store_.turns.enter(object.key, [work = shared_from_this(), &object] {
            work->store_.scheduler.add(makeMergeTask(work, object));
        });
    }
}

std::unique_ptr<Task> Work::nextPart() {
    while (!uploads_.empty()) {
        if (std::unique_ptr<Task> part = makePartTask(uploads_.front())) {
            return part;
        }
        uploads_.pop_front();
    }
    return nullptr;
}

std::unique_ptr<Task> Work::next() {
    const std::lock_guard lock(mutex_);
    if (std::unique_ptr<Task> part = nextPart()) {
        return part;
    }
    if (begun_ == units_ || stopped_) {
        return nullptr;
    }
    const size_t number = begun_++;
    if (op_ == OpType::READ) {
        return makeRangeTask(shared_from_this(), layout_.ranges[number]);
    }
    const PlannedObject& object = layout_.objects[number];
    return makeWriteTask(shared_from_this(), object);
}

void Work::offerParts(std::shared_ptr<Upload> upload, size_t parts) {
    {
        const std::lock_guard lock(mutex_);
        uploads_.push_back(std::move(upload));
    }
    store_.scheduler.add(shared_from_this(), parts);
}

void Work::cancel() {
    bool over = false;
    {
        const std::lock_guard lock(mutex_);
        if (stopped_) {
            return;
        }
        stopped_ = true;
        const size_t never = units_ - begun_;
        dropped_ = dropped_ || never > 0;
        begun_ = units_;
        left_ -= never;
        over = never > 0 && left_ == 0;
    }
    if (over) {
        finish();
    } else {
        store_.scheduler.cancel();
    }
}

void Work::unitEnded(Status status, std::vector<SegmentFailure> failures) {
    bool over = false;
    {
        const std::lock_guard lock(mutex_);
        if (status.code() == ErrorCode::CANCELED) {
            dropped_ = true;
        } else if (!status.ok()) {
            if (first_.ok()) {
                first_ = std::move(status);
            }
            if (failures_.size() + failures.size() <= kMaxFailures) {
                failures_.insert(failures_.end(), failures.begin(), failures.end());
            }
        }
        over = --left_ == 0;
    }
    if (over) {
        finish();
    }
}

bool Work::sameVersion(uint32_t object, std::string_view etag) {
    if (etag.empty()) {
        return true;
    }
    const std::lock_guard lock(mutex_);
    std::string& known = seen_[object].etag;
    if (known.empty()) {
        known = etag;
    }
    return known == etag;
}

void Work::checked(uint32_t object, uint64_t offset, uint64_t size, uint32_t crc) {
    const std::lock_guard lock(mutex_);
    seen_[object].parts.push_back({offset, size, crc});
}

void Work::wholeChecksum(uint32_t object, uint64_t size, std::string_view checksum) {
    const std::lock_guard lock(mutex_);
    seen_[object].total = size;
    seen_[object].checksum = checksum;
}

// Objects that were read whole in several ranges: the checksum over all of them, joined. The name
// of one where it differs.
std::string Work::checkWhole() {
    for (size_t i = 0; i < seen_.size(); ++i) {
        Seen& object = seen_[i];
        if (object.checksum.empty() || object.parts.empty()) {
            continue;
        }
        std::sort(object.parts.begin(), object.parts.end(),
                  [](const Part& a, const Part& b) { return a.offset < b.offset; });
        uint64_t reached = 0;
        uint32_t crc = 0;
        for (const Part& part : object.parts) {
            if (part.offset != reached) {
                break;
            }
            crc = crc32cJoin(crc, part.crc, part.size);
            reached += part.size;
        }
        if (reached == object.total && base64(crc) != object.checksum) {
            return layout_.objects[i].key;
        }
    }
    return {};
}

void Work::finish() {
    {
        const std::lock_guard lock(mutex_);
        uploads_.clear();
    }
    if (first_.ok() && !dropped_) {
        if (const std::string bad = checkWhole(); !bad.empty()) {
            first_ = Status::backend("OBJ: read " + store_.name(bad) +
                                     ": the bytes that came do not have the object's checksum");
            failures_.clear();
            for (const Piece& piece : layout_.pieces) {
                failures_.push_back({piece.planOffset, piece.size, 0, EIO});
            }
        }
    }
    if (dropped_) {
        completion_->cancel("OBJ: canceled");
    } else if (!first_.ok()) {
        completion_->fail(std::move(first_), std::move(failures_));
    } else {
        completion_->succeed();
    }
}

}  // namespace nixl::obj
