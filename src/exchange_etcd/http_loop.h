// The thread of an etcd client: HTTP requests, streams and timers over libcurl's multi interface.
// It sleeps when nothing moves. run() may be called from any thread; everything else, and every
// callback, is on the loop's own thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "nixl/error.h"

#include "base/mutex.h"
#include "base/threads.h"
#include "exchange_etcd/curl_api.h"

namespace nixl::exchange_etcd {

// Files for https; empty: the system's authorities, no certificate of our own.
struct TlsFiles {
    std::string ca, certificate, key;
};

struct HttpReply {
    bool arrived = false;  // a whole answer came; else `error` says why not
    bool refused = false;  // nothing was sent: nobody listens, no such host, TLS failed
    bool late = false;     // the time was up
    long status = 0;
    std::string body;
    std::string error;
};

struct HttpRequest {
    std::string url;
    std::string body;                      // posted; empty: GET
    std::string token;                     // for the header Authorization, raw
    std::chrono::milliseconds timeout{0};  // of the whole; 0: none, for streams
    // A stream's bytes as they come; else they are collected in the reply.
    std::function<void(std::string_view)> onData;
    std::function<void(HttpReply)> done;
};

class HttpLoop {
  public:
    using Clock = std::chrono::steady_clock;

    static Result<std::unique_ptr<HttpLoop>> create(TlsFiles tls);
    // Ends the thread; requests under way are dropped without a call. Not on the loop's thread.
    ~HttpLoop();
    HttpLoop(const HttpLoop&) = delete;
    HttpLoop& operator=(const HttpLoop&) = delete;

    // False when the loop has ended; then the task is not run.
    bool run(std::function<void()> task);
    bool onThread() const { return thread_.get_id() == std::this_thread::get_id(); }
    // In a forked child nothing of this may be touched.
    bool forked() const noexcept { return process_.forked(); }

    uint64_t startTimer(Clock::time_point when, std::function<void()> call);
    void stopTimer(uint64_t id);
    uint64_t send(HttpRequest request);
    void cancel(uint64_t id);  // no callback afterwards; one that has ended is none
    uint64_t requests() const { return requests_; }

  private:
    struct Exchange;

    HttpLoop(const CurlApi& api, CURLM* multi, TlsFiles tls);
    void loop();
    void setOptions(Exchange& exchange);
    void begin(uint64_t id);
    void dispose(std::unique_ptr<Exchange> exchange);
    std::chrono::milliseconds runTimers();
    void runTasks();
    void finishEnded();
    HttpReply reply(Exchange& exchange, CURLcode code) const;
    static size_t onBody(char* data, size_t size, size_t count, void* user);

    const CurlApi& api_;
    CURLM* const multi_;
    const TlsFiles tls_;
    const base::ProcessMark process_;
    std::thread thread_;

    Mutex mutex_;
    bool stop_ NIXL_GUARDED_BY(mutex_) = false;
    std::vector<std::function<void()>> tasks_ NIXL_GUARDED_BY(mutex_);

    // Of the loop's thread.
    uint64_t nextId_ = 1;
    uint64_t requests_ = 0;
    std::map<uint64_t, std::unique_ptr<Exchange>> exchanges_;
    bool inCallback_ = false;  // of libcurl, which takes no new request there
    std::vector<CURL*> idle_;
    std::map<std::pair<Clock::time_point, uint64_t>, std::function<void()>> timers_;
    std::map<uint64_t, Clock::time_point> timerTimes_;
};

}  // namespace nixl::exchange_etcd
