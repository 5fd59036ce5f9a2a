// One S3 operation: built, signed, repeated where that helps, and its errors told. What a kind of
// operation wants is a class derived from S3Task.
//
// Threads: Store is thread-safe; a task belongs to the loop that carries it out.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "nixl/error.h"
#include "nixl/services.h"

#include "credentials.h"
#include "loop.h"
#include "settings.h"
#include "signer.h"

namespace nixl::obj {

// Lets one at a time work on a name. Thread-safe.
class KeyTurns {
  public:
    // Calls `go` once, now or when those before have left.
    void enter(const std::string& key, std::function<void()> go);
    void leave(const std::string& key);

  private:
    std::mutex mutex_;  // guards what follows
    std::map<std::string, std::deque<std::function<void()>>> waiting_;
};

// What all operations of a backend share. Owned by the backend.
struct Store {
    Store(Settings from, PluginServices& plugin_services, const HttpOptions& http)
        : settings(std::move(from)),
          services(plugin_services),
          scheduler(http, settings.threads, settings.connections) {}

    const Settings settings;
    PluginServices& services;
    std::unique_ptr<CredentialSource> credentials;  // null: anonymous
    Scheduler scheduler;
    std::atomic<bool> checksumsRefused{false};
    std::atomic<int64_t> clockShift{0};  // seconds that the store's clock is ahead
    KeyTurns turns;
    std::atomic<int64_t> bucketSeen{-1};  // when an answer last proved that the bucket is there

    // "bucket/key" for messages.
    std::string name(std::string_view key) const;
    void log(LogLevel level, const std::string& text) { services.log(level, text); }
    bool checksums() const { return settings.checksumRequired || !checksumsRefused.load(); }
};

struct S3Request {
    std::string method = "GET";
    std::string key;  // empty: the bucket
    Pairs query;      // not encoded
    Pairs headers;    // names in lower case
    bool hasBody = false;
    uint64_t bodySize = 0;
    BodySource* source = nullptr;
    BodySink* sink = nullptr;
    std::string payloadHash;  // hexadecimal; empty: of no body, or unsigned
};

// How a try went.
struct Verdict {
    enum Kind : uint8_t { DONE, NEXT, AGAIN, FAILED } kind = DONE;  // NEXT: it has another step
    Status status;                                                  // why not
};

class S3Task : public Task {
  public:
    explicit S3Task(Store& store) : store_(store) {}

    bool prepare(HttpRequest& request) final;
    std::optional<std::chrono::milliseconds> finished(HttpAnswer& answer) final;
    void dropped() override;

  protected:
    // What one try sends.
    virtual Status fill(S3Request& request) = 0;
    // "read \"bucket/key\" at 0: 5 of 10 bytes", for messages.
    virtual std::string what() const = 0;
    // An answer that is no error: of a status of 2xx, or one that judges() names.
    virtual Verdict accept(HttpAnswer& answer) = 0;
    virtual bool judges(int /*status*/) const { return false; }
    // Whether the sink or the source itself ended the exchange, so that accept() judges it.
    virtual bool cutShort() const { return false; }
    // Whether the request may be sent again though the store may have done it.
    virtual bool repeatable() const { return true; }
    virtual void ended(Status status) = 0;  // once

    Store& store() const { return store_; }
    // An error of the store's or the transport's.
    Status failure(const HttpAnswer& answer) const;
    Status failure(const std::string& cause, int system_errno = 0) const;

  private:
    void sign(const S3Request& asked, HttpRequest& request);
    Verdict judge(HttpAnswer& answer);
    Verdict judgeTransport(const HttpAnswer& answer) const;
    Verdict judgeError(const HttpAnswer& answer);
    std::chrono::milliseconds delay(const HttpAnswer& answer) const;

    Store& store_;
    CredentialsPtr used_;
    unsigned tries_ = 0;
    bool withChecksum_ = false;
    bool clockTried_ = false;
};

// The same error as seen by a transfer: its errno.
int errnoOf(const HttpAnswer& answer);
int64_t unixTime();

}  // namespace nixl::obj
