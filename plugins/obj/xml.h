// What S3 answers in XML, read with bounds: no more than is asked for is believed. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nixl::obj {

// Longer answers are refused unread.
inline constexpr size_t kMaxXml = 16 << 20;

// <Error>: of a request, or of one name of a batch.
struct S3Error {
    std::string code;
    std::string message;
    std::string requestId;
    std::string key;     // in a batch
    std::string region;  // where the bucket really is
};

struct ListedObject {
    std::string key;
    uint64_t size = 0;
    std::string etag;  // without quotes
    int64_t mtime = 0;
};

struct Listing {
    std::vector<ListedObject> objects;
    bool truncated = false;
    std::string nextToken;
};

// Each gives nothing where the text is no such answer.
std::optional<S3Error> parseError(std::string_view xml);
std::optional<Listing> parseListing(std::string_view xml);
std::optional<std::string> parseUploadId(std::string_view xml);
std::optional<std::string> parseCompleted(std::string_view xml);         // the ETag, without quotes
std::optional<std::vector<S3Error>> parseDeleted(std::string_view xml);  // what was not removed

// Text as the content of an element; characters that XML cannot hold are left out.
std::string xmlEscape(std::string_view text);
// "2009-10-12T17:50:30.000Z" in seconds since 1970.
std::optional<int64_t> parseIsoTime(std::string_view text);

}  // namespace nixl::obj
