// See asking.h.
#include "asking.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include <curl/curl.h>

#include "crypto.h"
#include "upload.h"
#include "xml.h"

namespace nixl::obj {

namespace {

constexpr size_t kBatch = 1000;    // names of one request, at most
constexpr int64_t kBelieved = 10;  // seconds for which a bucket that was seen is believed in

// Waits for tasks.
class Gathering {
  public:
    explicit Gathering(size_t count) : left_(count) {}
    void ended() {
        const std::lock_guard lock(mutex_);
        if (--left_ == 0) {
            over_.notify_all();
        }
    }
    void wait() {
        std::unique_lock lock(mutex_);
        over_.wait(lock, [this] { return left_ == 0; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable over_;
    size_t left_;
};

// A task that somebody waits for. The caller's places stay as long as he waits.
class AskedTask : public S3Task {
  public:
    AskedTask(Store& store, Gathering& gathering, Status& status)
        : S3Task(store), gathering_(gathering), status_(status) {}
    bool canceled() const override { return false; }

  protected:
    // Whether a good end proves that the bucket is there.
    virtual bool proves() const { return true; }
    void ended(Status status) override {
        if (status.ok() && proves()) {
            store().bucketSeen = unixTime();
        }
        status_ = std::move(status);
        gathering_.ended();
    }

  private:
    Gathering& gathering_;
    Status& status_;
};

class HeadTask final : public AskedTask {
  public:
    HeadTask(Store& store,
             Gathering& gathering,
             Status& status,
             const std::string& key,
             std::optional<Attributes>& answer)
        : AskedTask(store, gathering, status), key_(key), answer_(answer) {}

  private:
    Status fill(S3Request& request) override {
        request.method = "HEAD";
        request.key = key_;
        return {};
    }
    std::string what() const override { return "look at " + store().name(key_); }
    bool proves() const override { return !missing_; }
    bool judges(int status) const override { return status == 404; }
    Verdict accept(HttpAnswer& answer) override {
        missing_ = answer.status == 404;
        if (missing_) {
            return {};
        }
        uint64_t size = 0;
        if (!parseDecimal(answer.header("content-length"), size)) {
            return {Verdict::FAILED, failure("the answer tells no length", EIO)};
        }
        Attributes found{{"size", std::to_string(size)}};
        const std::string modified(answer.header("last-modified"));
        const time_t time = modified.empty() ? -1 : curl_getdate(modified.c_str(), nullptr);
        if (time >= 0) {
            found["mtime"] = std::to_string(time);
        }
        std::string_view etag = answer.header("etag");
        if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') {
            etag = etag.substr(1, etag.size() - 2);
        }
        if (!etag.empty()) {
            found["etag"] = etag;
        }
        answer_ = std::move(found);
        return {};
    }
    const std::string& key_;
    std::optional<Attributes>& answer_;
    bool missing_ = false;
};

class ListTask final : public AskedTask {
  public:
    ListTask(Store& store,
             Gathering& gathering,
             Status& status,
             std::string_view prefix,
             size_t most,
             Listing& page)
        : AskedTask(store, gathering, status), prefix_(prefix), most_(most), page_(page) {}

  private:
    Status fill(S3Request& request) override {
        request.query = {{"list-type", "2"}, {"max-keys", std::to_string(most_)}};
        if (!prefix_.empty()) {
            request.query.emplace_back("prefix", prefix_);
        }
        if (!page_.nextToken.empty()) {
            request.query.emplace_back("continuation-token", page_.nextToken);
        }
        return {};
    }
    std::string what() const override {
        return "list " + store().name(prefix_) + (prefix_.empty() ? "" : "*");
    }
    Verdict accept(HttpAnswer& answer) override {
        auto page = parseListing(answer.body);
        if (!page) {
            return {Verdict::FAILED, failure("the answer is no listing", EIO)};
        }
        if (page->truncated && page->nextToken == page_.nextToken) {
            return {Verdict::FAILED, failure("the store gives the same page again", EIO)};
        }
        page_ = std::move(*page);
        return {};
    }

    const std::string prefix_;
    const size_t most_;
    Listing& page_;
};

class DeleteTask final : public AskedTask {
  public:
    DeleteTask(Store& store, Gathering& gathering, Status& status, const std::string& key)
        : AskedTask(store, gathering, status), key_(key) {}

  private:
    Status fill(S3Request& request) override {
        request.method = "DELETE";
        request.key = key_;
        return {};
    }
    std::string what() const override { return "remove " + store().name(key_); }
    bool proves() const override { return false; }
    bool judges(int status) const override { return status == 404; }
    Verdict accept(HttpAnswer& answer) override {
        const auto error = answer.status == 404 ? parseError(answer.body) : std::nullopt;
        if (error && error->code == "NoSuchBucket") {
            return {Verdict::FAILED, failure(answer)};
        }
        return {};
    }

    const std::string& key_;
};

class BatchDeleteTask final : public AskedTask {
  public:
    BatchDeleteTask(Store& store,
                    Gathering& gathering,
                    Status& status,
                    std::span<const std::string> keys,
                    std::vector<S3Error>& left)
        : AskedTask(store, gathering, status),
          count_(keys.size()),
          body_(list(keys)),
          left_(left) {}

  private:
    static std::string list(std::span<const std::string> keys) {
        std::string text =
            "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>";
        for (const std::string& key : keys) {
            text += "<Object><Key>" + xmlEscape(key) + "</Key></Object>";
        }
        return text + "</Delete>";
    }
    Status fill(S3Request& request) override {
        body_.rewind(0);
        request.method = "POST";
        request.query = {{"delete", ""}};
        request.hasBody = true;
        request.bodySize = body_.size();
        request.source = &body_;
        request.payloadHash = hex(sha256(body_.text()));
        if (const std::string digest = md5(body_.text()); !digest.empty()) {
            request.headers.emplace_back("content-md5", base64(digest));
        }
        return {};
    }
    std::string what() const override {
        return "remove " + std::to_string(count_) + " objects of " + store().name({});
    }
    Verdict accept(HttpAnswer& answer) override {
        auto left = parseDeleted(answer.body);
        if (!left) {
            return {Verdict::FAILED, failure(answer)};
        }
        left_ = std::move(*left);
        return {};
    }

    const size_t count_;
    TextSource body_;
    std::vector<S3Error>& left_;
};

// HEAD has no body, so a missing object and a missing bucket look the same.
Status checkBucket(Store& store) {
    Gathering gathering(1);
    Status status;
    Listing page;
    store.scheduler.add(std::make_unique<ListTask>(store, gathering, status, "", 1, page));
    gathering.wait();
    return status;
}

bool plainName(std::string_view key) {
    return std::all_of(key.begin(), key.end(),
                       [](char letter) { return static_cast<unsigned char>(letter) >= 0x20; });
}

}  // namespace

Result<std::vector<std::optional<Attributes>>> lookAt(Store& store,
                                                      const std::vector<std::string>& keys) {
    std::vector<std::optional<Attributes>> answers(keys.size());
    if (keys.empty()) {
        return answers;
    }
    std::vector<Status> ends(keys.size());
    Gathering gathering(keys.size());
    const int64_t seen = store.bucketSeen;
    for (size_t i = 0; i < keys.size(); ++i) {
        store.scheduler.add(
            std::make_unique<HeadTask>(store, gathering, ends[i], keys[i], answers[i]));
    }
    gathering.wait();
    bool missing = false;
    bool there = unixTime() - seen <= kBelieved;
    for (size_t i = 0; i < keys.size(); ++i) {
        if (!ends[i].ok()) {
            return ends[i];
        }
        missing = missing || !answers[i];
        there = there || answers[i];
    }
    if (missing && !there) {
        NIXL_RETURN_IF_ERROR(checkBucket(store));
    }
    return answers;
}

Result<std::vector<StorageEntry>> listObjects(Store& store, std::string_view prefix, size_t limit) {
    std::vector<StorageEntry> entries;
    Listing page;
    do {
        const size_t most = std::min(kBatch, limit - entries.size());
        if (most == 0) {
            break;
        }
        Gathering gathering(1);
        Status status;
        store.scheduler.add(
            std::make_unique<ListTask>(store, gathering, status, prefix, most, page));
        gathering.wait();
        if (!status.ok()) {
            return status;
        }
        for (ListedObject& object : page.objects) {
            if (entries.size() == limit) {
                break;
            }
            entries.push_back({std::move(object.key),
                               {{"size", std::to_string(object.size)},
                                {"mtime", std::to_string(object.mtime)},
                                {"etag", std::move(object.etag)}}});
        }
    } while (page.truncated);
    return entries;
}

std::vector<Status> removeObjects(Store& store, std::span<const std::string> keys) {
    std::vector<Status> ends(keys.size());
    std::vector<std::string> batched;
    std::vector<size_t> places;
    std::vector<size_t> single;
    for (size_t i = 0; i < keys.size(); ++i) {
        if (keys[i].empty()) {
            ends[i] = Status::invalidParam("OBJ: remove: the name is empty");
        } else if (keys.size() > 1 && plainName(keys[i])) {
            batched.push_back(keys[i]);
            places.push_back(i);
        } else {
            single.push_back(i);
        }
    }
    const size_t batches = (batched.size() + kBatch - 1) / kBatch;
    if (batches + single.size() == 0) {
        return ends;
    }
    std::vector<Status> batch_ends(batches);
    std::vector<std::vector<S3Error>> left(batches);
    Gathering gathering(batches + single.size());
    for (size_t b = 0; b < batches; ++b) {
        const size_t first = b * kBatch;
        const std::span<const std::string> part(batched.data() + first,
                                                std::min(kBatch, batched.size() - first));
        store.scheduler.add(
            std::make_unique<BatchDeleteTask>(store, gathering, batch_ends[b], part, left[b]));
    }
    for (const size_t i : single) {
        store.scheduler.add(std::make_unique<DeleteTask>(store, gathering, ends[i], keys[i]));
    }
    gathering.wait();
    std::map<std::string, Status> refused;
    for (size_t b = 0; b < batches; ++b) {
        for (const S3Error& error : left[b]) {
            if (error.code != "NoSuchKey") {
                refused[error.key] = Status(
                    error.code == "AccessDenied" ? ErrorCode::NOT_ALLOWED : ErrorCode::BACKEND,
                    "OBJ: remove " + store.name(error.key) + ": " + error.code + ": " +
                        error.message + " (endpoint " + store.settings.endpoint.text() + ")");
            }
        }
    }
    for (size_t i = 0; i < batched.size(); ++i) {
        ends[places[i]] = batch_ends[i / kBatch];
        if (const auto found = refused.find(batched[i]); found != refused.end()) {
            ends[places[i]] = found->second;
        }
    }
    return ends;
}

}  // namespace nixl::obj
