// See settings.h.
#include "exchange_etcd/settings.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string_view>
#include <system_error>

#include <sys/stat.h>
#include <unistd.h>

namespace nixl::exchange_etcd {
namespace {

constexpr size_t kMaxEndpoints = 64;

std::string textAt(const std::map<std::string, std::string>& texts, const char* name) {
    const auto found = texts.find(name);
    return found == texts.end() ? std::string() : found->second;
}

std::string_view trimmed(std::string_view text) {
    const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
    while (!text.empty() && blank(text.front())) {
        text.remove_prefix(1);
    }
    while (!text.empty() && blank(text.back())) {
        text.remove_suffix(1);
    }
    return text;
}

Status badEndpoint(std::string_view endpoint, const std::string& why) {
    return Status::invalidParam("etcd endpoint \"" + std::string(endpoint) + "\" " + why +
                                "; an endpoint is http://HOST:PORT or https://HOST:PORT");
}

bool validPort(std::string_view text) {
    unsigned port = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    return error == std::errc() && end == text.data() + text.size() && port >= 1 && port <= 65535;
}

// "http://host:port" of what a user wrote.
Result<std::string> readEndpoint(std::string_view text, bool tls) {
    std::string scheme = tls ? "https://" : "http://";
    std::string_view rest = text;
    if (const size_t colon = text.find("://"); colon != std::string_view::npos) {
        scheme = std::string(text.substr(0, colon + 3));
        rest = text.substr(colon + 3);
        if (scheme != "http://" && scheme != "https://") {
            return badEndpoint(text, "is not HTTP");
        }
    }
    while (!rest.empty() && rest.back() == '/') {
        rest.remove_suffix(1);
    }
    if (rest.find('@') != std::string_view::npos) {
        return Status::invalidParam(
            "an etcd endpoint holds a user or a password (\"@\"); give them as etcd settings"
            " \"user\" and \"password\" (NIXL_ETCD_USER, NIXL_ETCD_PASSWORD)");
    }
    if (rest.find_first_of("/?# \t\"\\<>^`{|}") != std::string_view::npos) {
        return badEndpoint(text, "has more than a host and a port");
    }
    std::string_view host = rest;
    std::string_view port = "2379";
    const size_t bracket = rest.rfind(']');
    const size_t colon = rest.rfind(':');
    if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
        host = rest.substr(0, colon);
        port = rest.substr(colon + 1);
    }
    if (!validPort(port)) {
        return badEndpoint(text, "has no port between 1 and 65535");
    }
    const bool literal = !host.empty() && host.front() == '[';
    if (host.empty() || (literal && host.back() != ']') ||
        (!literal && host.find(':') != std::string_view::npos)) {
        return badEndpoint(text,
                           host.empty() ? "has no host" : "has an IPv6 address without brackets");
    }
    return scheme + std::string(host) + ":" + std::string(port);
}

Status readEndpoints(const std::string& text, bool tls, std::vector<std::string>& endpoints) {
    size_t at = 0;
    while (at <= text.size()) {
        const size_t end = std::min(text.find_first_of(",;", at), text.size());
        const std::string_view one = trimmed(std::string_view(text).substr(at, end - at));
        at = end + 1;
        if (one.empty()) {
            continue;
        }
        Result<std::string> endpoint = readEndpoint(one, tls);
        if (!endpoint.ok()) {
            return endpoint.status();
        }
        endpoints.push_back(std::move(endpoint).value());
    }
    if (endpoints.empty() || endpoints.size() > kMaxEndpoints) {
        return Status::invalidParam("etcd endpoints \"" + text + "\": " +
                                    (endpoints.empty() ? "none is named" : "more than 64"));
    }
    return {};
}

Result<double> readSeconds(const char* name, const std::string& text, double low, double high) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) ||
        value < low || value > high) {
        return Status::invalidParam("etcd setting " + std::string(name) + "=\"" + text +
                                    "\": must be a number of seconds between " +
                                    std::to_string(static_cast<int>(low)) + " and " +
                                    std::to_string(static_cast<int>(high)));
    }
    return value;
}

Status checkFile(const char* name, const std::string& path) {
    if (!path.empty() && access(path.c_str(), R_OK) != 0) {
        return Status::invalidParam("etcd setting " + std::string(name) + "=\"" + path +
                                    "\": " + std::generic_category().message(errno));
    }
    return {};
}

Result<std::string> readPassword(const std::string& path) {
    struct stat info {};
    if (stat(path.c_str(), &info) != 0) {
        return Status::invalidParam("etcd setting password_file=\"" + path +
                                    "\": " + std::generic_category().message(errno));
    }
    if ((info.st_mode & 077) != 0) {
        return Status::invalidParam("etcd setting password_file=\"" + path +
                                    "\" can be read by others; its mode must be 0600");
    }
    std::ifstream file(path, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) {
        text.pop_back();
    }
    return text;
}

}  // namespace

Result<Settings> readSettings(const std::map<std::string, std::string>& texts) {
    Settings out;
    out.ca = textAt(texts, "ca");
    out.certificate = textAt(texts, "cert");
    out.key = textAt(texts, "key");
    out.user = textAt(texts, "user");
    out.password = textAt(texts, "password");
    NIXL_RETURN_IF_ERROR(checkFile("ca", out.ca));
    NIXL_RETURN_IF_ERROR(checkFile("cert", out.certificate));
    NIXL_RETURN_IF_ERROR(checkFile("key", out.key));
    if (out.certificate.empty() != out.key.empty()) {
        return Status::invalidParam("etcd settings cert and key: one is given without the other");
    }
    NIXL_RETURN_IF_ERROR(readEndpoints(textAt(texts, "endpoints"),
                                       !out.ca.empty() || !out.certificate.empty(), out.endpoints));
    if (const std::string path = textAt(texts, "password_file"); !path.empty()) {
        Result<std::string> password = readPassword(path);
        if (!password.ok()) {
            return password.status();
        }
        out.password = std::move(password).value();
    }
    if (out.user.empty() != out.password.empty()) {
        return Status::invalidParam(
            "etcd settings user and password: one is given without the other");
    }
    if (const std::string text = textAt(texts, "lease_time"); !text.empty()) {
        Result<double> seconds = readSeconds("lease_time", text, 2, 86'400);
        if (!seconds.ok()) {
            return seconds.status();
        }
        out.leaseTime = std::chrono::seconds(static_cast<int64_t>(std::ceil(seconds.value())));
    }
    if (const std::string text = textAt(texts, "timeout"); !text.empty()) {
        Result<double> seconds = readSeconds("timeout", text, 0, 3600);
        if (!seconds.ok()) {
            return seconds.status();
        }
        out.timeout = std::chrono::milliseconds(
            std::max<int64_t>(100, static_cast<int64_t>(seconds.value() * 1000)));
    }
    return out;
}

}  // namespace nixl::exchange_etcd
