// The task that changes a part of an object: reads it whole, changes it in memory and writes it,
// provided that nobody else did meanwhile. Writes of one backend to one object take turns.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "nixl/checksum.h"

#include "crypto.h"
#include "staging.h"
#include "upload.h"
#include "work.h"

namespace nixl::obj {

namespace {

class MergeTask final : public S3Task, private BodySink {
  public:
    MergeTask(std::shared_ptr<Work> work, const PlannedObject& object)
        : S3Task(work->store()), work_(std::move(work)), object_(object), key_(object.key) {}

    bool canceled() const override { return work_->canceled(); }

  private:
    Status fill(S3Request& request) override {
        request.key = key_;
        if (!writing_) {
            image_.clear();
            etag_.clear();
            tooLong_ = false;
            request.sink = this;
            return {};
        }
        body_ = std::make_unique<TextSource>(image_);
        request.method = "PUT";
        request.hasBody = true;
        request.bodySize = body_->size();
        request.source = body_.get();
        if (etag_.empty()) {
            request.headers.emplace_back("if-none-match", "*");
        } else {
            request.headers.emplace_back("if-match", etag_);
        }
        if (store().checksums()) {
            request.headers.emplace_back("x-amz-checksum-crc32c",
                                         base64(crc32c(0, image_.data(), image_.size())));
        }
        if (store().settings.signPayload) {
            request.payloadHash = hex(sha256(image_));
        }
        return {};
    }
    std::string what() const override {
        return "write " + store().name(key_) + (writing_ ? "" : ", reading what is there") +
               ": 0 of " + std::to_string(object_.size) + " bytes";
    }
    bool judges(int status) const override {
        return status == 404 || status == 409 || status == 412;
    }
    bool cutShort() const override { return tooLong_; }
    Verdict accept(HttpAnswer& answer) override {
        if (tooLong_) {
            return {Verdict::FAILED,
                    failure("the object is longer than merge_limit, " +
                                std::to_string(store().settings.mergeLimit) + " bytes",
                            EFBIG)};
        }
        if (writing_) {
            if (answer.status < 300) {
                return {};
            }
            writing_ = false;  // somebody else was quicker, or removed it
            return {answer.status == 404 && etag_.empty() ? Verdict::FAILED : Verdict::AGAIN,
                    failure(answer)};
        }
        if (answer.status == 404 && answer.body.find("NoSuchBucket") == std::string::npos) {
            etag_.clear();
            image_.clear();
        } else if (answer.status >= 300) {
            return {Verdict::FAILED, failure(answer)};
        } else {
            etag_ = answer.header("etag");
        }
        if (image_.size() < object_.size) {
            image_.resize(object_.size);
        }
        if (const Status copied = change(); !copied.ok()) {
            return {Verdict::FAILED, failure(copied.message(), EIO)};
        }
        writing_ = true;
        return {Verdict::NEXT, {}};
    }
    // Puts the pieces into the image.
    Status change() {
        const std::span<const Piece> pieces = work_->layout().piecesOf(object_);
        PieceReader reader(store().services.devices(), pieces, 0, object_.size);
        for (const Piece& piece : pieces) {
            reader.seek(piece.offset);
            while (reader.offset() < piece.offset + piece.size) {
                const uint64_t at = reader.offset();
                if (reader.copy(image_.data() + at, piece.offset + piece.size - at) == 0) {
                    return reader.status();
                }
            }
        }
        return {};
    }
    void ended(Status status) override {
        store().turns.leave(key_);
        std::vector<SegmentFailure> failures;
        if (!status.ok() && status.code() != ErrorCode::CANCELED) {
            failures = failuresOf(work_->layout().piecesOf(object_), 0, object_.size, 0,
                                  status.systemErrno());
        } else if (status.ok()) {
            for (const Piece& piece : work_->layout().piecesOf(object_)) {
                work_->moved(static_cast<int64_t>(piece.size));
            }
        }
        work_->unitEnded(std::move(status), std::move(failures));
    }
    bool begin(const HttpAnswer& answer) override { return answer.status == 200; }
    bool take(const char* data, size_t size) override {
        tooLong_ = image_.size() + size > store().settings.mergeLimit;
        if (!tooLong_) {
            image_.append(data, size);
        }
        return !tooLong_;
    }

    const std::shared_ptr<Work> work_;
    const PlannedObject& object_;
    const std::string key_;
    bool writing_ = false;
    bool tooLong_ = false;
    std::string image_;
    std::string etag_;
    std::unique_ptr<TextSource> body_;
};

}  // namespace

std::unique_ptr<Task> makeMergeTask(std::shared_ptr<Work> work, const PlannedObject& object) {
    return std::make_unique<MergeTask>(std::move(work), object);
}

}  // namespace nixl::obj
