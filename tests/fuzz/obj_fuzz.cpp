// Fuzzes what a store and the endpoints for keys answer: XML, heads, ranges, JSON, and files of
// profiles. What is accepted keeps its promises.
#include <cstdint>
#include <string_view>

#include "credentials.h"
#include "http.h"
#include "settings.h"
#include "xml.h"

namespace {

using namespace nixl::obj;

void readXml(std::string_view text) {
    static_cast<void>(parseError(text));
    static_cast<void>(parseUploadId(text));
    static_cast<void>(parseCompleted(text));
    static_cast<void>(parseDeleted(text));
    const auto page = parseListing(text);
    if (page && page->truncated && page->nextToken.empty()) {
        __builtin_trap();
    }
}

void readHead(std::string_view text) {
    HttpAnswer answer;
    size_t bytes = 0;
    while (!text.empty()) {
        const size_t end = text.find('\n');
        const std::string_view line = text.substr(0, end == text.npos ? end : end + 1);
        text.remove_prefix(line.size());
        if (!readHeaderLine(line, answer, bytes)) {
            break;
        }
    }
    if (answer.headers.size() > kMaxHeaders || answer.status < 0 || answer.status > 999) {
        __builtin_trap();
    }
    uint64_t first = 0;
    uint64_t last = 0;
    uint64_t total = 0;
    if (parseContentRange(answer.header("content-range"), first, last, total) &&
        (first > last || last >= total)) {
        __builtin_trap();
    }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 5) {
        case 0:
            readXml(text);
            break;
        case 1:
            readHead(text);
            break;
        case 2:
            static_cast<void>(parseCredentials(text, "fuzz").ok());
            break;
        case 3:
            static_cast<void>(parseIni(text));
            static_cast<void>(parseIsoTime(text));
            break;
        default:
            if (const auto endpoint = parseEndpoint(std::string(text), "http");
                endpoint.ok() && endpoint.value().host.empty()) {
                __builtin_trap();
            }
            break;
    }
    return 0;
}
