// One HTTP request and its answer over libcurl's multi interface. An Exchange belongs to one loop
// thread (loop.h); nothing here is thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct curl_slist;
using CurlEasy = void;
using CurlMulti = void;

namespace nixl::obj {

// Kept of an answer's head; more is an error of the server's.
inline constexpr size_t kMaxHeaders = 256;
inline constexpr size_t kMaxHeaderBytes = 64 << 10;

struct HttpAnswer {
    int curlCode = 0;       // 0: an HTTP answer came, whole
    std::string transport;  // what the transport says otherwise
    int systemErrno = 0;
    bool connected = false;  // whether the server may have seen the request
    int status = 0;
    std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
    std::string body;                                          // where no sink took it

    std::string_view header(std::string_view name) const;
};

// One line of an answer's head, bounded: a status line begins the answer anew. False: too much.
bool readHeaderLine(std::string_view line, HttpAnswer& answer, size_t& bytes);
// The bytes of "bytes 5-9/10"; total is UINT64_MAX where it is "*". False where it is none.
bool parseContentRange(std::string_view text, uint64_t& first, uint64_t& last, uint64_t& total);
bool parseDecimal(std::string_view text, uint64_t& value);

// Gives the bytes of a request's body.
class BodySource {
  public:
    virtual ~BodySource() = default;
    // kFailed stops the exchange.
    virtual size_t read(char* to, size_t size) = 0;
    static constexpr size_t kFailed = SIZE_MAX;
    virtual void rewind(uint64_t offset) = 0;
};

// Takes the bytes of an answer's body.
class BodySink {
  public:
    virtual ~BodySink() = default;
    // The head is there. False: the body is an error message and goes into the answer.
    virtual bool begin(const HttpAnswer& answer) = 0;
    // False stops the exchange.
    virtual bool take(const char* data, size_t size) = 0;
};

struct HttpRequest {
    std::string method;
    std::string url;
    std::vector<std::string> headers;  // "Name: value"
    bool hasBody = false;
    uint64_t bodySize = 0;
    BodySource* source = nullptr;  // all of these: as long as the exchange
    BodySink* sink = nullptr;
};

struct HttpOptions {
    std::string caBundle;
    double connectTimeout = 5;
    double idleTimeout = 30;    // without a byte
    bool proxies = true;        // from the environment
    size_t maxBody = 16 << 20;  // of an answer without a sink
};

// A request under way. It stays where it is: libcurl points to it.
class Exchange {
  public:
    Exchange();
    ~Exchange();
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    // Hands it to `multi`; false, with the reason in answer(), where that failed.
    bool start(CurlMulti* multi, HttpRequest request, const HttpOptions& options);
    // Takes it back, finished or not; a connection in use is closed.
    void stop();
    // After libcurl has reported its end.
    void settle(int curl_code);
    HttpAnswer& answer() { return answer_; }
    void* owner = nullptr;

  private:
    void set(const HttpOptions& options);
    static size_t onHeader(char* data, size_t size, size_t count, void* self);
    static size_t onBody(char* data, size_t size, size_t count, void* self);
    static size_t onRead(char* to, size_t size, size_t count, void* self);
    static int onSeek(void* self, int64_t offset, int origin);

    CurlEasy* easy_;
    CurlMulti* multi_ = nullptr;
    curl_slist* headers_ = nullptr;
    HttpRequest request_;
    HttpAnswer answer_;
    size_t headerBytes_ = 0;
    size_t maxBody_ = 0;
    bool begun_ = false;
    bool toSink_ = false;
    bool headersTooLong_ = false;
    bool bodyTooLong_ = false;
    char error_[256] = {};  // CURL_ERROR_SIZE
};

// A multi handle whose descriptors do not pass to programs that are started; null: none to be had.
CurlMulti* openMulti();

// Carries one request out on the calling thread.
HttpAnswer performNow(HttpRequest request, const HttpOptions& options);

}  // namespace nixl::obj
