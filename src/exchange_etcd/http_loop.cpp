// See http_loop.h.
#include "exchange_etcd/http_loop.h"

#include <algorithm>
#include <new>
#include <string>
#include <system_error>
#include <utility>

namespace nixl::exchange_etcd {

namespace {

constexpr long kConnectMilliseconds = 3000;
constexpr size_t kIdleHandles = 8;
constexpr size_t kMaxReply = 512U << 20;  // bytes; a larger one is an error of the server
// A stream whose host is gone is noticed after about kProbeAfter + 3 * kProbeEvery seconds.
constexpr long kProbeAfter = 10;
constexpr long kProbeEvery = 5;

bool neverSent(CURLcode code) {
    switch (code) {
        case CURLE_COULDNT_RESOLVE_HOST:
        case CURLE_COULDNT_RESOLVE_PROXY:
        case CURLE_COULDNT_CONNECT:
        case CURLE_SSL_CONNECT_ERROR:
        case CURLE_SSL_CERTPROBLEM:
        case CURLE_SSL_CACERT_BADFILE:
        case CURLE_PEER_FAILED_VERIFICATION:
            return true;
        default:
            return false;
    }
}

}  // namespace

struct HttpLoop::Exchange {
    uint64_t id = 0;
    HttpLoop* loop = nullptr;
    CURL* easy = nullptr;
    curl_slist* headers = nullptr;
    HttpRequest request;
    bool cancelled = false;
    std::string body;
    std::string problem = std::string(CURL_ERROR_SIZE, '\0');
};

HttpLoop::HttpLoop(const CurlApi& api, CURLM* multi, TlsFiles tls)
    : api_(api), multi_(multi), tls_(std::move(tls)) {}

Result<std::unique_ptr<HttpLoop>> HttpLoop::create(TlsFiles tls) {
    Result<const CurlApi*> api = curlApi();
    if (!api.ok()) {
        return api.status();
    }
    CURLM* const multi = api.value()->multiInit();
    if (multi == nullptr) {
        return Status::backend("etcd: libcurl has no memory for a client");
    }
    std::unique_ptr<HttpLoop> made(new HttpLoop(*api.value(), multi, std::move(tls)));
    Result<std::thread> thread = base::startThread("nixl-etcd", base::Priority::RESPONSIVE,
                                                   [loop = made.get()] { loop->loop(); });
    if (!thread.ok()) {
        return thread.status();
    }
    made->thread_ = std::move(thread).value();
    return made;
}

HttpLoop::~HttpLoop() {
    if (forked()) {
        // Threads and connections are the parent's.
        for (auto& [id, exchange] : exchanges_) {
            [[maybe_unused]] const Exchange* const kept = exchange.release();
        }
        new (std::nothrow) std::thread(std::move(thread_));
        return;
    }
    {
        MutexLock lock(mutex_);
        stop_ = true;
    }
    api_.multiWakeup(multi_);
    if (thread_.joinable()) {
        thread_.join();
    }
    for (auto& [id, exchange] : std::exchange(exchanges_, {})) {
        dispose(std::move(exchange));
    }
    for (CURL* easy : idle_) {
        api_.easyCleanup(easy);
    }
    api_.multiCleanup(multi_);
}

bool HttpLoop::run(std::function<void()> task) {
    {
        MutexLock lock(mutex_);
        if (stop_) {
            return false;
        }
        tasks_.push_back(std::move(task));
    }
    api_.multiWakeup(multi_);
    return true;
}

uint64_t HttpLoop::startTimer(Clock::time_point when, std::function<void()> call) {
    const uint64_t id = nextId_++;
    timers_[{when, id}] = std::move(call);
    timerTimes_[id] = when;
    return id;
}

void HttpLoop::stopTimer(uint64_t id) {
    if (const auto found = timerTimes_.find(id); found != timerTimes_.end()) {
        timers_.erase({found->second, id});
        timerTimes_.erase(found);
    }
}

size_t HttpLoop::onBody(char* data, size_t size, size_t count, void* user) {
    auto& exchange = *static_cast<Exchange*>(user);
    const std::string_view bytes(data, size * count);
    if (exchange.cancelled) {
        return 0;
    }
    if (exchange.request.onData) {
        exchange.loop->inCallback_ = true;
        exchange.request.onData(bytes);  // may cancel this very exchange, and send others
        exchange.loop->inCallback_ = false;
    } else if (exchange.body.size() + bytes.size() > kMaxReply) {
        return 0;
    } else {
        exchange.body += bytes;
    }
    return bytes.size();
}

void HttpLoop::setOptions(Exchange& exchange) {
    CURL* const easy = exchange.easy;
    const HttpRequest& request = exchange.request;
    api_.easySetopt(easy, CURLOPT_URL, request.url.c_str());
    api_.easySetopt(easy, CURLOPT_NOSIGNAL, 1L);
    api_.easySetopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    api_.easySetopt(easy, CURLOPT_CONNECTTIMEOUT_MS, kConnectMilliseconds);
    api_.easySetopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    api_.easySetopt(easy, CURLOPT_TCP_KEEPIDLE, kProbeAfter);
    api_.easySetopt(easy, CURLOPT_TCP_KEEPINTVL, kProbeEvery);
    api_.easySetopt(easy, CURLOPT_ERRORBUFFER, exchange.problem.data());
    api_.easySetopt(easy, CURLOPT_PRIVATE, &exchange);
    api_.easySetopt(easy, CURLOPT_WRITEFUNCTION, &HttpLoop::onBody);
    api_.easySetopt(easy, CURLOPT_WRITEDATA, &exchange);
    if (request.timeout.count() > 0) {
        api_.easySetopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(request.timeout.count()));
    }
    if (!request.body.empty()) {
        api_.easySetopt(easy, CURLOPT_POSTFIELDS, request.body.data());
        api_.easySetopt(easy, CURLOPT_POSTFIELDSIZE_LARGE,
                        static_cast<curl_off_t>(request.body.size()));
        exchange.headers = api_.slistAppend(nullptr, "Content-Type: application/json");
        // Without this a large body waits for an answer that etcd does not give.
        exchange.headers = api_.slistAppend(exchange.headers, "Expect:");
    }
    if (!request.token.empty()) {
        exchange.headers =
            api_.slistAppend(exchange.headers, ("Authorization: " + request.token).c_str());
    }
    api_.easySetopt(easy, CURLOPT_HTTPHEADER, exchange.headers);
    if (!tls_.ca.empty()) {
        api_.easySetopt(easy, CURLOPT_CAINFO, tls_.ca.c_str());
    }
    if (!tls_.certificate.empty()) {
        api_.easySetopt(easy, CURLOPT_SSLCERT, tls_.certificate.c_str());
        api_.easySetopt(easy, CURLOPT_SSLKEY, tls_.key.c_str());
    }
}

uint64_t HttpLoop::send(HttpRequest request) {
    auto exchange = std::make_unique<Exchange>();
    exchange->id = nextId_++;
    exchange->loop = this;
    exchange->request = std::move(request);
    if (idle_.empty()) {
        exchange->easy = api_.easyInit();
    } else {
        exchange->easy = idle_.back();
        idle_.pop_back();
    }
    ++requests_;
    const uint64_t id = exchange->id;
    if (exchange->easy == nullptr) {
        HttpReply none;
        none.error = "libcurl has no memory for a request";
        startTimer(Clock::now(), [done = std::move(exchange->request.done), none]() mutable {
            done(std::move(none));
        });
        return id;
    }
    setOptions(*exchange);
    exchanges_[id] = std::move(exchange);
    if (inCallback_) {
        startTimer(Clock::now(), [this, id] { begin(id); });
    } else {
        begin(id);
    }
    return id;
}

void HttpLoop::begin(uint64_t id) {
    const auto found = exchanges_.find(id);
    if (found == exchanges_.end() || found->second->cancelled) {
        return;
    }
    const CURLMcode code = api_.multiAddHandle(multi_, found->second->easy);
    if (code == CURLM_OK) {
        return;
    }
    std::unique_ptr<Exchange> exchange = std::move(found->second);
    exchanges_.erase(found);
    HttpReply none;
    none.error = "libcurl takes no request (CURLMcode " + std::to_string(code) + ")";
    startTimer(Clock::now(), [done = std::move(exchange->request.done), none]() mutable {
        done(std::move(none));
    });
    dispose(std::move(exchange));
}

void HttpLoop::cancel(uint64_t id) {
    const auto found = exchanges_.find(id);
    if (found == exchanges_.end()) {
        return;
    }
    // libcurl may be inside a callback of it: it is taken out of libcurl afterwards.
    found->second->cancelled = true;
    startTimer(Clock::now(), [this, id] {
        if (const auto still = exchanges_.find(id); still != exchanges_.end()) {
            std::unique_ptr<Exchange> exchange = std::move(still->second);
            exchanges_.erase(still);
            dispose(std::move(exchange));
        }
    });
}

void HttpLoop::dispose(std::unique_ptr<Exchange> exchange) {
    api_.multiRemoveHandle(multi_, exchange->easy);
    api_.slistFreeAll(exchange->headers);
    if (idle_.size() < kIdleHandles) {
        api_.easyReset(exchange->easy);
        idle_.push_back(exchange->easy);
    } else {
        api_.easyCleanup(exchange->easy);
    }
}

HttpReply HttpLoop::reply(Exchange& exchange, CURLcode code) const {
    HttpReply out;
    out.body = std::move(exchange.body);
    api_.easyGetinfo(exchange.easy, CURLINFO_RESPONSE_CODE, &out.status);
    if (code == CURLE_OK) {
        out.arrived = true;
        return out;
    }
    out.refused = neverSent(code);
    out.late = code == CURLE_OPERATION_TIMEDOUT;
    out.error = exchange.problem.c_str();  // as far as it is written
    if (out.error.empty()) {
        out.error = api_.easyStrerror(code);
    }
    long number = 0;
    api_.easyGetinfo(exchange.easy, CURLINFO_OS_ERRNO, &number);
    if (code == CURLE_COULDNT_CONNECT && number != 0) {
        out.error += ": " + std::generic_category().message(static_cast<int>(number));
    }
    return out;
}

void HttpLoop::finishEnded() {
    int left = 0;
    while (const CURLMsg* const message = api_.multiInfoRead(multi_, &left)) {
        if (message->msg != CURLMSG_DONE) {
            continue;
        }
        Exchange* ended = nullptr;
        api_.easyGetinfo(message->easy_handle, CURLINFO_PRIVATE, &ended);
        const auto found = exchanges_.find(ended->id);
        std::unique_ptr<Exchange> exchange = std::move(found->second);
        exchanges_.erase(found);
        HttpReply answer = reply(*exchange, message->data.result);
        const std::function<void(HttpReply)> done = std::move(exchange->request.done);
        const bool cancelled = exchange->cancelled;
        dispose(std::move(exchange));
        if (!cancelled) {
            done(std::move(answer));
        }
    }
}

std::chrono::milliseconds HttpLoop::runTimers() {
    const Clock::time_point now = Clock::now();
    while (!timers_.empty() && timers_.begin()->first.first <= now) {
        const auto first = timers_.begin();
        const std::function<void()> call = std::move(first->second);
        timerTimes_.erase(first->first.second);
        timers_.erase(first);
        call();
    }
    if (timers_.empty()) {
        return std::chrono::hours(1);
    }
    return std::chrono::ceil<std::chrono::milliseconds>(timers_.begin()->first.first - now);
}

void HttpLoop::runTasks() {
    std::vector<std::function<void()>> tasks;
    {
        MutexLock lock(mutex_);
        tasks.swap(tasks_);
    }
    for (std::function<void()>& task : tasks) {
        task();
    }
}

void HttpLoop::loop() {
    while (true) {
        {
            MutexLock lock(mutex_);
            if (stop_) {
                return;
            }
        }
        runTasks();
        int running = 0;
        api_.multiPerform(multi_, &running);
        finishEnded();
        const std::chrono::milliseconds until_next = runTimers();
        // What these calls sent, or what ended, is looked at without sleeping.
        bool more = false;
        {
            MutexLock lock(mutex_);
            more = !tasks_.empty();
        }
        int events = 0;
        const auto longest = std::chrono::milliseconds(more ? 0 : until_next.count());
        api_.multiPoll(multi_, nullptr, 0,
                       static_cast<int>(std::clamp<int64_t>(longest.count(), 0, 3'600'000)),
                       &events);
    }
}

}  // namespace nixl::exchange_etcd
