// See http.h.
#include "http.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <map>

#include <curl/curl.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace nixl::obj {

namespace {

constexpr long kReadBuffer = 256 << 10;
constexpr long kUploadBuffer = 256 << 10;

static_assert(CURL_ERROR_SIZE <= 256);

curl_socket_t openSocket(void* /*user*/, curlsocktype /*purpose*/, curl_sockaddr* address) {
    const int fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
    if (fd < 0) {
        return CURL_SOCKET_BAD;
    }
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return fd;
}

std::string_view withoutBlanks(std::string_view text) {
    while (!text.empty() && (text.back() == '\r' || text.back() == '\n' || text.back() == ' ' ||
                             text.back() == '\t')) {
        text.remove_suffix(1);
    }
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) {
        text.remove_prefix(1);
    }
    return text;
}

}  // namespace

std::string_view HttpAnswer::header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
        if (key == name) {
            return value;
        }
    }
    return {};
}

bool readHeaderLine(std::string_view line, HttpAnswer& answer, size_t& bytes) {
    bytes += line.size();
    if (bytes > kMaxHeaderBytes || answer.headers.size() >= kMaxHeaders) {
        return false;
    }
    if (line.starts_with("HTTP/")) {  // also after "100 Continue" and a proxy's own answer
        answer.headers.clear();
        answer.status = 0;
        const size_t space = line.find(' ');
        uint64_t status = 0;
        if (space != std::string_view::npos &&
            parseDecimal(withoutBlanks(line.substr(space + 1, 3)), status)) {
            answer.status = static_cast<int>(status);
        }
        return true;
    }
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0) {
        return true;
    }
    std::string name(withoutBlanks(line.substr(0, colon)));
    for (char& letter : name) {
        letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter;
    }
    answer.headers.emplace_back(std::move(name),
                                std::string(withoutBlanks(line.substr(colon + 1))));
    return true;
}

bool parseDecimal(std::string_view text, uint64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return !text.empty() && error == std::errc() && end == text.data() + text.size();
}

bool parseContentRange(std::string_view text, uint64_t& first, uint64_t& last, uint64_t& total) {
    constexpr std::string_view kUnit = "bytes ";
    const size_t dash = text.find('-');
    const size_t slash = text.find('/');
    if (!text.starts_with(kUnit) || dash == std::string_view::npos ||
        slash == std::string_view::npos || slash < dash) {
        return false;
    }
    total = UINT64_MAX;
    const std::string_view end = text.substr(slash + 1);
    return parseDecimal(text.substr(kUnit.size(), dash - kUnit.size()), first) &&
           parseDecimal(text.substr(dash + 1, slash - dash - 1), last) && first <= last &&
           (end == "*" || (parseDecimal(end, total) && last < total));
}

Exchange::Exchange() : easy_(curl_easy_init()) {}

Exchange::~Exchange() {
    stop();
    if (easy_ != nullptr) {
        curl_easy_cleanup(easy_);
    }
}

void Exchange::set(const HttpOptions& options) {
    const auto timeout_ms = static_cast<long>(options.connectTimeout * 1000);
    curl_easy_setopt(easy_, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy_, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy_, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    curl_easy_setopt(easy_, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(easy_, CURLOPT_BUFFERSIZE, kReadBuffer);
    curl_easy_setopt(easy_, CURLOPT_UPLOAD_BUFFERSIZE, kUploadBuffer);
    curl_easy_setopt(easy_, CURLOPT_CONNECTTIMEOUT_MS, std::max(timeout_ms, 1L));
    curl_easy_setopt(easy_, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(easy_, CURLOPT_LOW_SPEED_TIME,
                     std::max(static_cast<long>(options.idleTimeout), 1L));
    curl_easy_setopt(easy_, CURLOPT_OPENSOCKETFUNCTION, &openSocket);
    curl_easy_setopt(easy_, CURLOPT_ERRORBUFFER, error_);
    curl_easy_setopt(easy_, CURLOPT_PRIVATE, this);
    if (!options.caBundle.empty()) {
        curl_easy_setopt(easy_, CURLOPT_CAINFO, options.caBundle.c_str());
    }
    if (!options.proxies) {
        curl_easy_setopt(easy_, CURLOPT_PROXY, "");
    }
    curl_easy_setopt(easy_, CURLOPT_HEADERFUNCTION, &Exchange::onHeader);
    curl_easy_setopt(easy_, CURLOPT_HEADERDATA, this);
    curl_easy_setopt(easy_, CURLOPT_WRITEFUNCTION, &Exchange::onBody);
    curl_easy_setopt(easy_, CURLOPT_WRITEDATA, this);
}

bool Exchange::start(CurlMulti* multi, HttpRequest request, const HttpOptions& options) {
    request_ = std::move(request);
    answer_ = {};
    headerBytes_ = 0;
    maxBody_ = options.maxBody;
    begun_ = toSink_ = headersTooLong_ = bodyTooLong_ = false;
    error_[0] = '\0';
    if (easy_ == nullptr) {
        answer_.curlCode = CURLE_OUT_OF_MEMORY;
        answer_.transport = curl_easy_strerror(CURLE_OUT_OF_MEMORY);
        return false;
    }
    curl_easy_reset(easy_);
    set(options);
    curl_easy_setopt(easy_, CURLOPT_URL, request_.url.c_str());
    headers_ = curl_slist_append(headers_, "Expect:");
    for (const std::string& line : request_.headers) {
        headers_ = curl_slist_append(headers_, line.c_str());
    }
    if (request_.method == "HEAD") {
        curl_easy_setopt(easy_, CURLOPT_NOBODY, 1L);
    } else if (request_.hasBody) {
        curl_easy_setopt(easy_, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(easy_, CURLOPT_INFILESIZE_LARGE,
                         static_cast<curl_off_t>(request_.bodySize));
        curl_easy_setopt(easy_, CURLOPT_READFUNCTION, &Exchange::onRead);
        curl_easy_setopt(easy_, CURLOPT_READDATA, this);
        curl_easy_setopt(easy_, CURLOPT_SEEKFUNCTION, &Exchange::onSeek);
        curl_easy_setopt(easy_, CURLOPT_SEEKDATA, this);
        headers_ = curl_slist_append(headers_, "Transfer-Encoding:");
    }
    curl_easy_setopt(easy_, CURLOPT_CUSTOMREQUEST,
                     request_.method == "HEAD" ? nullptr : request_.method.c_str());
    curl_easy_setopt(easy_, CURLOPT_HTTPHEADER, headers_);
    if (const CURLMcode code = curl_multi_add_handle(multi, easy_); code != CURLM_OK) {
        answer_.curlCode = CURLE_FAILED_INIT;
        answer_.transport = curl_multi_strerror(code);
        return false;
    }
    multi_ = multi;
    return true;
}

void Exchange::stop() {
    if (multi_ != nullptr) {
        curl_multi_remove_handle(multi_, easy_);
        multi_ = nullptr;
    }
    if (easy_ != nullptr) {
        curl_easy_setopt(easy_, CURLOPT_HTTPHEADER, nullptr);
    }
    curl_slist_free_all(headers_);
    headers_ = nullptr;
}

void Exchange::settle(int curl_code) {
    long number = 0;
    curl_off_t sent = 0;
    curl_easy_getinfo(easy_, CURLINFO_OS_ERRNO, &number);
    curl_easy_getinfo(easy_, CURLINFO_PRETRANSFER_TIME_T, &sent);
    answer_.curlCode = curl_code;
    answer_.connected = sent > 0;
    if (curl_code != CURLE_OK) {
        answer_.systemErrno =
            curl_code == CURLE_OPERATION_TIMEDOUT ? ETIMEDOUT : static_cast<int>(number);
        answer_.transport =
            error_[0] != '\0' ? error_ : curl_easy_strerror(static_cast<CURLcode>(curl_code));
        if (headersTooLong_) {
            answer_.transport = "the head of the answer is too long";
        } else if (bodyTooLong_) {
            answer_.transport = "the answer is longer than " + std::to_string(maxBody_) + " bytes";
        }
    }
    stop();
}

size_t Exchange::onHeader(char* data, size_t size, size_t count, void* self) {
    auto& exchange = *static_cast<Exchange*>(self);
    if (!readHeaderLine({data, size * count}, exchange.answer_, exchange.headerBytes_)) {
        exchange.headersTooLong_ = true;
        return 0;
    }
    return size * count;
}

size_t Exchange::onBody(char* data, size_t size, size_t count, void* self) {
    auto& exchange = *static_cast<Exchange*>(self);
    const size_t bytes = size * count;
    BodySink* const sink = exchange.request_.sink;
    if (!exchange.begun_) {
        exchange.begun_ = true;
        exchange.toSink_ = sink != nullptr && sink->begin(exchange.answer_);
    }
    if (exchange.toSink_) {
        return sink->take(data, bytes) ? bytes : 0;
    }
    if (exchange.answer_.body.size() + bytes > exchange.maxBody_) {
        exchange.bodyTooLong_ = true;
        return 0;
    }
    exchange.answer_.body.append(data, bytes);
    return bytes;
}

size_t Exchange::onRead(char* to, size_t size, size_t count, void* self) {
    const auto& exchange = *static_cast<Exchange*>(self);
    BodySource* const source = exchange.request_.source;
    const size_t given = source != nullptr ? source->read(to, size * count) : 0;
    return given == BodySource::kFailed ? CURL_READFUNC_ABORT : given;
}

int Exchange::onSeek(void* self, int64_t offset, int origin) {
    const auto& exchange = *static_cast<Exchange*>(self);
    if (origin != SEEK_SET || offset < 0 || exchange.request_.source == nullptr) {
        return CURL_SEEKFUNC_FAIL;
    }
    exchange.request_.source->rewind(static_cast<uint64_t>(offset));
    return CURL_SEEKFUNC_OK;
}

namespace {

// Unix sockets that would pass to a started program, with what waits in them.
std::map<int, int> openPairs() {
    std::map<int, int> found;
    DIR* const folder = opendir("/proc/self/fd");
    while (const dirent* entry = folder != nullptr ? readdir(folder) : nullptr) {
        const int fd = std::atoi(entry->d_name);
        int domain = 0;
        socklen_t size = sizeof(domain);
        const int flags = entry->d_name[0] == '.' ? -1 : fcntl(fd, F_GETFD);
        if (flags >= 0 && (flags & FD_CLOEXEC) == 0 &&
            getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX) {
            int in = 0;
            int out = 0;
            ioctl(fd, FIONREAD, &in);
            ioctl(fd, SIOCOUTQ, &out);
            found[fd] = in + out;
        }
    }
    if (folder != nullptr) {
        closedir(folder);
    }
    return found;
}

}  // namespace

// libcurl's pair of sockets for waking has no close-on-exec in older versions, and it does not tell
// which they are: they are new, and a wake-up shows in them.
CurlMulti* openMulti() {
    const std::map<int, int> before = openPairs();
    CurlMulti* const multi = curl_multi_init();
    if (multi == nullptr) {
        return nullptr;
    }
    const std::map<int, int> quiet = openPairs();
    curl_multi_wakeup(multi);
    for (const auto& [fd, waiting] : openPairs()) {
        const auto then = quiet.find(fd);
        if (!before.contains(fd) && then != quiet.end() && then->second == 0 && waiting > 0) {
            fcntl(fd, F_SETFD, FD_CLOEXEC);
        }
    }
    return multi;
}

HttpAnswer performNow(HttpRequest request, const HttpOptions& options) {
    HttpAnswer answer;
    answer.curlCode = CURLE_FAILED_INIT;
    answer.transport = "libcurl gives no multi handle";
    CurlMulti* const multi = openMulti();
    if (multi == nullptr) {
        return answer;
    }
    {
        Exchange exchange;
        if (exchange.start(multi, std::move(request), options)) {
            int still = 1;
            while (still > 0 && curl_multi_perform(multi, &still) == CURLM_OK && still > 0) {
                curl_multi_poll(multi, nullptr, 0, 1000, nullptr);
            }
            int left = 0;
            const CURLMsg* const message = curl_multi_info_read(multi, &left);
            exchange.settle(message != nullptr ? message->data.result : CURLE_FAILED_INIT);
        }
        answer = std::move(exchange.answer());
    }
    curl_multi_cleanup(multi);
    return answer;
}

}  // namespace nixl::obj
