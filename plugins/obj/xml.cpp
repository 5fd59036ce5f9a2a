// See xml.h. pugixml reads: it knows no entities but the five and numbers, and no DTD.
#include "xml.h"

#include <charconv>
#include <ctime>

#include <pugixml.hpp>

namespace nixl::obj {

namespace {

constexpr size_t kMaxEntries = 100'000;  // of one answer; S3 gives at most 1,000

bool load(std::string_view xml, pugi::xml_document& document) {
    return xml.size() <= kMaxXml &&
           document.load_buffer(xml.data(), xml.size(), pugi::parse_default, pugi::encoding_utf8);
}

// The root, where it has this name (a prefix of a namespace aside).
pugi::xml_node root(const pugi::xml_document& document, std::string_view name) {
    const pugi::xml_node node = document.document_element();
    std::string_view found = node.name();
    if (const size_t colon = found.find(':'); colon != std::string_view::npos) {
        found.remove_prefix(colon + 1);
    }
    return found == name ? node : pugi::xml_node();
}

std::string text(const pugi::xml_node& node, const char* child) {
    return node.child_value(child);
}

std::string unquoted(std::string value) {
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
        return value.substr(1, value.size() - 2);
    }
    return value;
}

bool parseNumber(std::string_view digits, uint64_t& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size();
}

S3Error readError(const pugi::xml_node& node) {
    return {text(node, "Code"), text(node, "Message"), text(node, "RequestId"), text(node, "Key"),
            text(node, "Region")};
}

}  // namespace

std::optional<S3Error> parseError(std::string_view xml) {
    pugi::xml_document document;
    if (!load(xml, document)) {
        return std::nullopt;
    }
    pugi::xml_node node = root(document, "Error");
    if (!node && root(document, "ErrorResponse")) {  // as other services of AWS wrap it
        node = document.document_element().child("Error");
    }
    return node ? std::optional(readError(node)) : std::nullopt;
}

std::optional<Listing> parseListing(std::string_view xml) {
    pugi::xml_document document;
    if (!load(xml, document)) {
        return std::nullopt;
    }
    const pugi::xml_node node = root(document, "ListBucketResult");
    if (!node) {
        return std::nullopt;
    }
    Listing listing;
    for (const pugi::xml_node& entry : node.children("Contents")) {
        ListedObject object;
        object.key = text(entry, "Key");
        if (object.key.empty() || !parseNumber(text(entry, "Size"), object.size) ||
            listing.objects.size() == kMaxEntries) {
            return std::nullopt;
        }
        object.etag = unquoted(text(entry, "ETag"));
        object.mtime = parseIsoTime(text(entry, "LastModified")).value_or(0);
        listing.objects.push_back(std::move(object));
    }
    listing.truncated = text(node, "IsTruncated") == "true";
    listing.nextToken = text(node, "NextContinuationToken");
    if (listing.truncated && listing.nextToken.empty()) {
        return std::nullopt;  // the rest could never be asked for
    }
    return listing;
}

std::optional<std::string> parseUploadId(std::string_view xml) {
    pugi::xml_document document;
    if (!load(xml, document)) {
        return std::nullopt;
    }
    std::string id = text(root(document, "InitiateMultipartUploadResult"), "UploadId");
    return id.empty() ? std::nullopt : std::optional(std::move(id));
}

std::optional<std::string> parseCompleted(std::string_view xml) {
    pugi::xml_document document;
    if (!load(xml, document)) {
        return std::nullopt;
    }
    const pugi::xml_node node = root(document, "CompleteMultipartUploadResult");
    return node ? std::optional(unquoted(text(node, "ETag"))) : std::nullopt;
}

std::optional<std::vector<S3Error>> parseDeleted(std::string_view xml) {
    pugi::xml_document document;
    if (!load(xml, document)) {
        return std::nullopt;
    }
    const pugi::xml_node node = root(document, "DeleteResult");
    if (!node) {
        return std::nullopt;
    }
    std::vector<S3Error> left;
    for (const pugi::xml_node& entry : node.children("Error")) {
        if (left.size() == kMaxEntries) {
            return std::nullopt;
        }
        left.push_back(readError(entry));
    }
    return left;
}

std::string xmlEscape(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (const char letter : text) {
        switch (letter) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            case '\r':
                out += "&#13;";
                break;
            case '\n':
                out += "&#10;";
                break;
            case '\t':
                out += "&#9;";
                break;
            default:
                if (static_cast<unsigned char>(letter) >= 0x20) {
                    out += letter;
                }
        }
    }
    return out;
}

std::optional<int64_t> parseIsoTime(std::string_view text) {
    tm parts{};
    const std::string copy(text.substr(0, 32));
    const char* const end = strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
    if (end == nullptr) {
        return std::nullopt;
    }
    return static_cast<int64_t>(timegm(&parts));
}

}  // namespace nixl::obj
