// The tasks that write an object: one PUT, or an upload in parts, which is removed again where it
// cannot be completed.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "nixl/checksum.h"

#include "crypto.h"
#include "upload.h"
#include "work.h"
#include "xml.h"

namespace nixl::obj {

size_t PieceSource::read(char* to, size_t size) {
    size_t copied = 0;
    while (copied < size) {
        const uint64_t step = reader_.copy(to + copied, size - copied);
        if (step == 0) {
            break;
        }
        copied += step;
    }
    report(reader_.offset());
    return reader_.status().ok() ? copied : kFailed;
}

void PieceSource::report(uint64_t offset) {
    work_.moved(static_cast<int64_t>(offset) - static_cast<int64_t>(reported_));
    reported_ = offset;
}

std::string PieceSource::digest(Checksum kind) {
    uint32_t crc = 0;
    Sha256 sha;
    reader_.seek(first_);
    while (reader_.offset() < end_) {
        const std::span<const char> here = reader_.here(end_ - reader_.offset());
        if (here.empty()) {
            break;  // a failure: the whole request ends
        }
        if (kind == Checksum::CRC32C) {
            crc = crc32c(crc, here.data(), here.size());
        } else {
            sha.add(here.data(), here.size());
        }
        reader_.advance(here.size());
    }
    reader_.seek(first_);
    if (kind == Checksum::CRC32C) {
        return base64(crc);
    }
    return sha.finish();
}

std::string addDigest(S3Request& request, PieceSource& source, const Store& store) {
    const bool sha = store.settings.checksum == Checksum::SHA256;
    std::string checksum;
    if (sha || store.settings.signPayload) {
        const std::string digest = source.digest(Checksum::SHA256);
        request.payloadHash = hex(digest);
        checksum = base64(digest);
    }
    if (!store.checksums()) {
        return {};
    }
    if (!sha) {
        checksum = source.digest(Checksum::CRC32C);
    }
    request.headers.emplace_back(sha ? "x-amz-checksum-sha256" : "x-amz-checksum-crc32c", checksum);
    return checksum;
}

namespace {

class PutTask final : public S3Task {
  public:
    PutTask(std::shared_ptr<Work> work, const PlannedObject& object)
        : S3Task(work->store()),
          work_(std::move(work)),
          object_(object),
          source_(*work_, work_->layout().piecesOf(object), 0, object.size) {}

    bool canceled() const override { return work_->canceled(); }

  private:
    Status fill(S3Request& request) override {
        source_.rewind(0);
        request.method = "PUT";
        request.key = object_.key;
        request.hasBody = true;
        request.bodySize = object_.size;
        request.source = &source_;
        checksum_ = addDigest(request, source_, store());
        return source_.status().ok()
                   ? Status()
                   : failure(source_.status().message(), errnoOf(source_.status()));
    }
    bool cutShort() const override { return !source_.status().ok(); }
    std::string what() const override {
        return "write " + store().name(object_.key) + ": 0 of " + std::to_string(object_.size) +
               " bytes";
    }
    // A checksum that the store gives back must be that of what was sent.
    Verdict accept(HttpAnswer& answer) override {
        if (cutShort()) {
            return {Verdict::FAILED,
                    failure(source_.status().message(), errnoOf(source_.status()))};
        }
        const std::string_view theirs =
            answer.header(store().settings.checksum == Checksum::SHA256 ? "x-amz-checksum-sha256"
                                                                        : "x-amz-checksum-crc32c");
        if (!theirs.empty() && !checksum_.empty() && theirs != checksum_) {
            return {Verdict::AGAIN,
                    failure("the store has another checksum than what was sent", EIO)};
        }
        return {};
    }
    void ended(Status status) override {
        source_.stop();
        std::vector<SegmentFailure> failures;
        if (!status.ok() && status.code() != ErrorCode::CANCELED) {
            failures = failuresOf(work_->layout().piecesOf(object_), 0, object_.size, 0,
                                  status.systemErrno());
        }
        work_->unitEnded(std::move(status), std::move(failures));
    }

    const std::shared_ptr<Work> work_;
    const PlannedObject& object_;
    PieceSource source_;
    std::string checksum_;
};

// Removes an upload that will not be completed. Nobody waits for it.
class AbortTask final : public S3Task {
  public:
    AbortTask(Store& store, std::string key, std::string id)
        : S3Task(store), key_(std::move(key)), id_(std::move(id)) {}
    bool canceled() const override { return false; }

  private:
    Status fill(S3Request& request) override {
        request.method = "DELETE";
        request.key = key_;
        request.query = {{"uploadId", id_}};
        return {};
    }
    std::string what() const override { return "abort the upload of " + store().name(key_); }
    Verdict accept(HttpAnswer& /*answer*/) override { return {}; }
    bool judges(int status) const override { return status == 404; }  // it is gone
    void ended(Status status) override {
        if (!status.ok()) {
            store().log(LogLevel::WARN, status.message().substr(5) +
                                            "; its parts stay in the "
                                            "store until a rule of the bucket removes them");
        }
    }

    const std::string key_;
    const std::string id_;
};

class CreateTask final : public S3Task {
  public:
    explicit CreateTask(std::shared_ptr<Upload> upload)
        : S3Task(upload->work->store()), upload_(std::move(upload)) {}
    bool canceled() const override { return upload_->work->canceled(); }

  private:
    Status fill(S3Request& request) override {
        request.method = "POST";
        request.key = upload_->object.key;
        request.query = {{"uploads", ""}};
        request.hasBody = true;
        upload_->checksums = store().checksums();
        if (upload_->checksums) {
            const bool sha = store().settings.checksum == Checksum::SHA256;
            request.headers = {{"x-amz-checksum-algorithm", sha ? "SHA256" : "CRC32C"}};
        }
        return {};
    }
    std::string what() const override { return upload_->what(); }
    bool repeatable() const override { return false; }  // each begins another upload
    Verdict accept(HttpAnswer& answer) override {
        auto id = parseUploadId(answer.body);
        if (!id) {
            return {Verdict::FAILED, failure("the store's answer names no upload", EIO)};
        }
        upload_->id = std::move(*id);
        return {};
    }
    void ended(Status status) override {
        if (!status.ok()) {
            upload_->end(std::move(status));
            return;
        }
        upload_->work->offerParts(upload_, upload_->parts.size());
    }

    const std::shared_ptr<Upload> upload_;
};

class PartTask final : public S3Task {
  public:
    PartTask(std::shared_ptr<Upload> upload, size_t number)
        : S3Task(upload->work->store()),
          upload_(std::move(upload)),
          number_(number),
          first_(number * upload_->partSize),
          size_(std::min(upload_->partSize, upload_->object.size - first_)),
          source_(
              *upload_->work, upload_->work->layout().piecesOf(upload_->object), first_, size_) {}
    bool canceled() const override { return upload_->work->canceled() || upload_->broken; }

  private:
    Status fill(S3Request& request) override {
        source_.rewind(0);
        request.method = "PUT";
        request.key = upload_->object.key;
        request.query = {{"partNumber", std::to_string(number_ + 1)}, {"uploadId", upload_->id}};
        request.hasBody = true;
        request.bodySize = size_;
        request.source = &source_;
        checksum_ = upload_->checksums ? addDigest(request, source_, store()) : std::string();
        return source_.status().ok()
                   ? Status()
                   : failure(source_.status().message(), errnoOf(source_.status()));
    }
    bool cutShort() const override { return !source_.status().ok(); }
    std::string what() const override {
        return upload_->what() + ", part " + std::to_string(number_ + 1) + " of " +
               std::to_string(upload_->parts.size());
    }
    Verdict accept(HttpAnswer& answer) override {
        if (cutShort()) {
            return {Verdict::FAILED,
                    failure(source_.status().message(), errnoOf(source_.status()))};
        }
        const std::string_view etag = answer.header("etag");
        if (etag.empty() || etag.size() > 1024) {
            return {Verdict::AGAIN, failure("the store's answer has no ETag", EIO)};
        }
        upload_->parts[number_] = {std::string(etag), checksum_};
        return {};
    }
    void ended(Status status) override {
        source_.stop();
        upload_->partEnded(std::move(status));
    }

    const std::shared_ptr<Upload> upload_;
    const size_t number_;
    const uint64_t first_;
    const uint64_t size_;
    PieceSource source_;
    std::string checksum_;
};

class CompleteTask final : public S3Task {
  public:
    explicit CompleteTask(std::shared_ptr<Upload> upload)
        : S3Task(upload->work->store()), upload_(std::move(upload)), body_(upload_->partList()) {}
    bool canceled() const override { return upload_->work->canceled(); }

  private:
    Status fill(S3Request& request) override {
        request.key = upload_->object.key;
        if (lost_) {  // an earlier try may have done it: look whether the object is there
            request.method = "HEAD";
            return {};
        }
        body_.rewind(0);
        request.method = "POST";
        request.query = {{"uploadId", upload_->id}};
        request.hasBody = true;
        request.bodySize = body_.size();
        request.source = &body_;
        request.payloadHash = hex(sha256(body_.text()));
        ++asked_;
        return {};
    }
    std::string what() const override { return upload_->what() + ", completing it"; }
    bool judges(int status) const override { return status == 404 && asked_ > 1 && !lost_; }
    Verdict accept(HttpAnswer& answer) override {
        if (answer.status == 404) {  // the upload is gone: an earlier try completed it, or nobody
            lost_ = true;
            return {Verdict::NEXT, {}};
        }
        if (lost_) {
            uint64_t size = 0;
            const bool ours = parseDecimal(answer.header("content-length"), size) &&
                              size == upload_->object.size && isOurs(answer.header("etag"));
            return ours ? Verdict{}
                        : Verdict{Verdict::FAILED,
                                  failure("the upload is gone, and the object is another", EIO)};
        }
        // The head of 200 is sent before the store knows how it ends.
        if (const auto error = parseError(answer.body)) {
            return {error->code == "InternalError" || error->code == "SlowDown" ||
                            error->code == "ServiceUnavailable"
                        ? Verdict::AGAIN
                        : Verdict::FAILED,
                    failure(answer)};
        }
        const auto etag = parseCompleted(answer.body);
        if (!etag) {
            return {Verdict::AGAIN, failure("the store's answer is no end of an upload", EIO)};
        }
        if (!isOurs(*etag)) {
            return {Verdict::FAILED, failure("ETag " + *etag + " is not one of " +
                                                 std::to_string(upload_->parts.size()) + " parts",
                                             EIO)};
        }
        return {};
    }
    // The ETag of an upload ends in the number of its parts, in stores that keep to the rule.
    bool isOurs(std::string_view etag) const {
        while (etag.ends_with('"')) {
            etag.remove_suffix(1);
        }
        const size_t dash = etag.rfind('-');
        return dash == std::string_view::npos ||
               etag.substr(dash + 1) == std::to_string(upload_->parts.size());
    }
    void ended(Status status) override { upload_->end(std::move(status)); }

    const std::shared_ptr<Upload> upload_;
    TextSource body_;
    unsigned asked_ = 0;
    bool lost_ = false;
};

}  // namespace

std::string Upload::what() const {
    return "write " + work->store().name(object.key) + ": 0 of " + std::to_string(object.size) +
           " bytes";
}

std::string Upload::partList() const {
    const bool sha = work->store().settings.checksum == Checksum::SHA256;
    const std::string name = sha ? "ChecksumSHA256" : "ChecksumCRC32C";
    std::string text =
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";
    for (size_t i = 0; i < parts.size(); ++i) {
        text += "<Part><PartNumber>" + std::to_string(i + 1) + "</PartNumber><ETag>" +
                xmlEscape(parts[i].etag) + "</ETag>";
        if (!parts[i].checksum.empty()) {
            text += "<" + name + ">" + parts[i].checksum + "</" + name + ">";
        }
        text += "</Part>";
    }
    return text + "</CompleteMultipartUpload>";
}

void Upload::partEnded(Status status) {
    bool over = false;
    bool complete = false;
    {
        const std::lock_guard lock(mutex);
        --running;
        if (!status.ok()) {
            broken = true;
            if (first.ok() || first.code() == ErrorCode::CANCELED) {
                first = std::move(status);
            }
        } else {
            ++there;
        }
        over = broken && running == 0;
        complete = !broken && there == parts.size();
    }
    if (over) {
        end(first);
    } else if (complete) {
        work->store().scheduler.add(std::make_unique<CompleteTask>(shared_from_this()));
    } else if (broken) {
        work->store().scheduler.cancel();
    }
}

void Upload::end(Status status) {
    if (!status.ok() && !id.empty()) {
        work->store().scheduler.add(std::make_unique<AbortTask>(work->store(), object.key, id));
    }
    std::vector<SegmentFailure> failures;
    if (!status.ok() && status.code() != ErrorCode::CANCELED) {
        failures =
            failuresOf(work->layout().piecesOf(object), 0, object.size, 0, status.systemErrno());
    }
    work->unitEnded(std::move(status), std::move(failures));
}

std::unique_ptr<Task> makePartTask(const std::shared_ptr<Upload>& upload) {
    size_t number = 0;
    {
        const std::lock_guard lock(upload->mutex);
        if (upload->broken || upload->nextPart == upload->parts.size()) {
            return nullptr;
        }
        number = upload->nextPart++;
        ++upload->running;
    }
    return std::make_unique<PartTask>(upload, number);
}

std::unique_ptr<Task> makeWriteTask(std::shared_ptr<Work> work, const PlannedObject& object) {
    const Settings& settings = work->store().settings;
    if (object.size <= settings.multipartThreshold) {
        return std::make_unique<PutTask>(std::move(work), object);
    }
    auto upload = std::make_shared<Upload>(std::move(work), object);
    upload->partSize = choosePartSize(object.size, settings.partSize);
    upload->parts.resize((object.size + upload->partSize - 1) / upload->partSize);
    return std::make_unique<CreateTask>(std::move(upload));
}

}  // namespace nixl::obj
