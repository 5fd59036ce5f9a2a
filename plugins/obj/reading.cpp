// The task that reads one range of an object into memory: one copy, from libcurl's buffer to where
// the bytes belong (GPU memory: by way of page-locked buffers). Lengths, range, version and
// checksum are compared with what was asked for.
#include <algorithm>
#include <cerrno>

#include <curl/curl.h>

#include "nixl/checksum.h"

#include "crypto.h"
#include "staging.h"
#include "work.h"

namespace nixl::obj {

namespace {

class RangeTask final : public S3Task, private BodySink {
  public:
    RangeTask(std::shared_ptr<Work> work, const Range& range)
        : S3Task(work->store()),
          work_(std::move(work)),
          range_(range),
          pieces_(work_->layout().pieces.data() + range.firstPiece, range.pieceCount),
          cursor_(pieces_, range.offset),
          writer_(work_->store().services.devices()),
          whole_(range.whole) {}

    bool canceled() const override { return work_->canceled(); }

  private:
    Status fill(S3Request& request) override;
    std::string what() const override;
    Verdict accept(HttpAnswer& answer) override;
    bool judges(int status) const override { return status == 416; }
    bool cutShort() const override {
        return enough_ || longer_ || !problem_.empty() || !writer_.status().ok();
    }
    void ended(Status status) override;
    bool begin(const HttpAnswer& answer) override;
    bool take(const char* data, size_t size) override;

    uint64_t done() const { return cursor_.offset() - range_.offset; }
    const std::string& key() const { return work_->layout().objects[range_.object].key; }
    void startAnew();
    Verdict compare(const HttpAnswer& answer);
    Verdict again(const std::string& cause) const { return {Verdict::AGAIN, failure(cause, EIO)}; }

    const std::shared_ptr<Work> work_;
    const Range range_;
    const std::span<const Piece> pieces_;
    PieceCursor cursor_;
    PieceWriter writer_;
    uint64_t skip_ = 0;            // bytes before the range, of a store that ignores ranges
    uint64_t expected_ = 0;        // of the range, as the answer's head says
    uint64_t total_ = UINT64_MAX;  // the whole object's size
    std::string problem_;          // of the head
    bool whole_;                   // ask without a range
    bool longer_ = false;          // there is more than that: ask anew, with a range
    bool enough_ = false;          // the rest of the body is not wanted
    bool crcWanted_ = false;
    uint32_t crc_ = 0;
    std::unique_ptr<Sha256> sha_;
};

void RangeTask::startAnew() {
    writer_.stop();
    work_->moved(-static_cast<int64_t>(done()));
    cursor_.seek(range_.offset);
    skip_ = expected_ = 0;
    total_ = UINT64_MAX;
    problem_.clear();
    enough_ = longer_ = crcWanted_ = false;
    crc_ = 0;
    sha_.reset();
}

Status RangeTask::fill(S3Request& request) {
    startAnew();
    request.key = key();
    request.sink = this;
    request.headers = {{"x-amz-checksum-mode", "ENABLED"}};
    if (!whole_) {  // with a range, stores give no checksum
        const uint64_t last = range_.offset + range_.size - 1;
        request.headers.emplace_back(
            "range", "bytes=" + std::to_string(range_.offset) + "-" + std::to_string(last));
    }
    return {};
}

std::string RangeTask::what() const {
    return "read " + store().name(key()) + " at " + std::to_string(range_.offset) + ": " +
           std::to_string(done()) + " of " + std::to_string(range_.size) + " bytes";
}

bool RangeTask::begin(const HttpAnswer& answer) {
    if (answer.status != 200 && answer.status != 206) {
        return false;
    }
    uint64_t first = 0;
    uint64_t last = 0;
    uint64_t length = UINT64_MAX;
    const bool sized = parseDecimal(answer.header("content-length"), length);
    if (answer.status == 200) {  // all of the object, whatever was asked for
        total_ = sized ? length : UINT64_MAX;
        longer_ = whole_ && sized && length > range_.size;
        skip_ = range_.offset;
        expected_ = total_ > range_.offset ? std::min(range_.size, total_ - range_.offset) : 0;
    } else if (!parseContentRange(answer.header("content-range"), first, last, total_) ||
               first != range_.offset || last - first + 1 > range_.size) {
        problem_ = "the answer's Content-Range \"" +
                   std::string(answer.header("content-range").substr(0, 80)) +
                   "\" is not what was asked for";
        return true;
    } else {
        expected_ = last - first + 1;
        if (sized && length != expected_) {
            problem_ = "Content-Length " + std::to_string(length) + " and Content-Range \"" +
                       std::string(answer.header("content-range").substr(0, 80)) + "\" disagree";
            return true;
        }
    }
    const bool whole = range_.offset == 0 && expected_ == total_;
    crcWanted_ = total_ != UINT64_MAX && !answer.header("x-amz-checksum-crc32c").empty();
    if (whole && !crcWanted_ && !answer.header("x-amz-checksum-sha256").empty()) {
        sha_ = std::make_unique<Sha256>();
    }
    return true;
}

bool RangeTask::take(const char* data, size_t size) {
    if (longer_ || !problem_.empty()) {
        return false;
    }
    const uint64_t skipped = std::min<uint64_t>(skip_, size);
    skip_ -= skipped;
    data += skipped;
    size -= skipped;
    const uint64_t wanted = std::min<uint64_t>(size, expected_ - done());
    if (crcWanted_) {
        crc_ = crc32c(crc_, data, wanted);
    }
    if (sha_ != nullptr) {
        sha_->add(data, wanted);
    }
    for (uint64_t left = wanted; left > 0;) {
        const PieceCursor::Place here = cursor_.place(left);
        const uint64_t step = here.size == 0 ? std::min(left, cursor_.gap()) : here.size;
        if (here.size != 0 && !writer_.put(here, data)) {
            return false;
        }
        cursor_.advance(step);
        data += step;
        left -= step;
    }
    work_->moved(static_cast<int64_t>(wanted));
    enough_ = wanted < size;
    return !enough_;
}

// What came against what the head promised, the other ranges, and the store's checksum.
Verdict RangeTask::compare(const HttpAnswer& answer) {
    if (total_ == UINT64_MAX && answer.status == 200 && done() < expected_) {
        total_ = range_.offset + done();  // a length that only the end told
        expected_ = done();
    }
    if (done() != expected_) {
        return again("the answer ended early");
    }
    if (!work_->sameVersion(range_.object, answer.header("etag"))) {
        return {Verdict::FAILED, failure("the object was replaced while it was read", ESTALE)};
    }
    const std::string_view crc = answer.header("x-amz-checksum-crc32c");
    const bool whole = range_.offset == 0 && expected_ == total_;
    const bool composite = crc.find('-') != std::string_view::npos;  // of an upload in parts
    if (crcWanted_ && !composite) {
        if (whole && base64(crc_) != crc) {
            return again("the bytes that came do not have the object's checksum");
        }
        if (!whole) {
            work_->checked(range_.object, range_.offset, expected_, crc_);
            work_->wholeChecksum(range_.object, total_, crc);
        }
    }
    if (sha_ != nullptr) {
        const std::string_view sha = answer.header("x-amz-checksum-sha256");
        if (sha.find('-') == std::string_view::npos && base64(sha_->finish()) != sha) {
            return again("the bytes that came do not have the object's checksum");
        }
    }
    return {};
}

Verdict RangeTask::accept(HttpAnswer& answer) {
    if (!writer_.flush()) {
        return {Verdict::FAILED, failure(writer_.status().message(), errnoOf(writer_.status()))};
    }
    if (!problem_.empty()) {
        return again(problem_);
    }
    if (longer_) {
        whole_ = false;
        return {Verdict::NEXT, {}};
    }
    if (answer.status != 416) {
        if (Verdict verdict = compare(answer); verdict.kind != Verdict::DONE) {
            return verdict;
        }
    }
    if (done() == range_.size) {
        return {};
    }
    std::string end = "the object ends before";
    if (total_ != UINT64_MAX) {
        end = "the object ends at " + std::to_string(total_);
    }
    return {Verdict::FAILED, failure(end)};
}

void RangeTask::ended(Status status) {
    writer_.stop();
    std::vector<SegmentFailure> failures;
    if (!status.ok() && status.code() != ErrorCode::CANCELED) {
        // Only what a short object had is valid; of a broken answer nothing is.
        const bool valid = status.systemErrno() == 0 && status.code() == ErrorCode::BACKEND;
        failures = failuresOf(pieces_, range_.offset, range_.size, valid ? done() : 0,
                              status.systemErrno());
    }
    work_->unitEnded(std::move(status), std::move(failures));
}

}  // namespace

std::unique_ptr<Task> makeRangeTask(std::shared_ptr<Work> work, const Range& range) {
    return std::make_unique<RangeTask>(std::move(work), range);
}

}  // namespace nixl::obj
