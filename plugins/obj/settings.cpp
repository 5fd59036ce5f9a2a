// See settings.h.
#include "settings.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace nixl::obj {

namespace {

std::string lower(std::string text) {
    for (char& letter : text) {
        letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter;
    }
    return text;
}

std::string trimmed(std::string_view text) {
    constexpr std::string_view kBlanks = " \t\r\n";
    const size_t first = text.find_first_not_of(kBlanks);
    if (first == std::string_view::npos) {
        return {};
    }
    return std::string(text.substr(first, text.find_last_not_of(kBlanks) - first + 1));
}

bool isIpAddress(std::string_view host) {
    return host.starts_with('[') || host.find_first_not_of("0123456789.") == std::string_view::npos;
}

std::string_view withoutPort(std::string_view host) {
    if (host.starts_with('[')) {
        return host.substr(0, host.find(']') + 1);
    }
    return host.substr(0, host.find(':'));
}

// AWS's own rules; other stores allow more, and then take the path style.
bool isDnsBucket(std::string_view bucket) {
    const auto good = [](char letter) {
        return (letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9') ||
               letter == '-' || letter == '.';
    };
    return bucket.size() >= 3 && bucket.size() <= 63 &&
           std::all_of(bucket.begin(), bucket.end(), good) && bucket.front() != '-' &&
           bucket.front() != '.' && bucket.back() != '-' && bucket.back() != '.' &&
           bucket.find("..") == std::string_view::npos;
}

std::string awsHost(const std::string& region) {
    const bool china = region.starts_with("cn-");
    return "s3." + region + ".amazonaws.com" + (china ? ".cn" : "");
}

std::string homeFile(const char* name) {
    const char* const home = std::getenv("HOME");
    return home != nullptr && *home != '\0' ? std::string(home) + "/.aws/" + name : std::string();
}

}  // namespace

Sections parseIni(std::string_view text) {
    Sections sections;
    std::map<std::string, std::string>* section = nullptr;
    while (!text.empty()) {
        const size_t end = std::min(text.find('\n'), text.size());
        const std::string_view raw = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        const std::string line = trimmed(raw);
        if (line.empty() || line[0] == '#' || line[0] == ';') {
            continue;
        }
        if (line[0] == '[') {
            const size_t close = line.find(']');
            section = close == std::string::npos
                          ? nullptr
                          : &sections[trimmed(std::string_view(line).substr(1, close - 1))];
            continue;
        }
        const size_t equals = line.find('=');
        const bool nested = raw[0] == ' ' || raw[0] == '\t';  // belongs to the line before
        if (section != nullptr && equals != std::string::npos && !nested) {
            (*section)[lower(trimmed(line.substr(0, equals)))] = trimmed(line.substr(equals + 1));
        }
    }
    return sections;
}

Sections readIni(const std::string& path) {
    constexpr size_t kMost = 1 << 20;
    std::ifstream file(path, std::ios::binary);
    std::string text(kMost, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(file.gcount()));
    return parseIni(text);
}

std::string fromEnvironment(std::initializer_list<const char*> names) {
    for (const char* const name : names) {
        const char* const value = std::getenv(name);
        if (value != nullptr && *value != '\0') {
            return value;
        }
    }
    return {};
}

std::string textSetting(const Parameters& parameters, const char* name) {
    if (parameters.given(name) && !parameters.text(name).empty()) {
        return parameters.text(name);
    }
    std::string variable = "NIXL_OBJ_";
    for (const char* letter = name; *letter != '\0'; ++letter) {
        variable += *letter >= 'a' && *letter <= 'z' ? static_cast<char>(*letter - 32) : *letter;
    }
    return fromEnvironment({variable.c_str()});
}

std::map<std::string, std::string> Profile::credentials() const {
    return readIni(credentialsPath)[name];
}

std::map<std::string, std::string> Profile::config() const {
    Sections sections = readIni(configPath);
    return name == "default" && sections.contains("default") ? sections["default"]
                                                             : sections["profile " + name];
}

Profile chooseProfile(const Parameters& parameters) {
    Profile profile;
    profile.name = textSetting(parameters, "profile");
    if (profile.name.empty()) {
        profile.name = fromEnvironment({"AWS_PROFILE", "AWS_DEFAULT_PROFILE"});
    }
    if (profile.name.empty()) {
        profile.name = "default";
    }
    profile.credentialsPath = fromEnvironment({"AWS_SHARED_CREDENTIALS_FILE"});
    if (profile.credentialsPath.empty()) {
        profile.credentialsPath = homeFile("credentials");
    }
    profile.configPath = fromEnvironment({"AWS_CONFIG_FILE"});
    if (profile.configPath.empty()) {
        profile.configPath = homeFile("config");
    }
    return profile;
}

Result<Endpoint> parseEndpoint(const std::string& text, const std::string& scheme) {
    const auto wrong = [&](const std::string& why) {
        return Status::invalidParam("OBJ: endpoint_override \"" + text + "\": " + why);
    };
    Endpoint endpoint;
    endpoint.scheme = scheme;
    std::string rest = text;
    if (const size_t mark = text.find("://"); mark != std::string::npos) {
        endpoint.scheme = lower(text.substr(0, mark));
        rest = text.substr(mark + 3);
    }
    if (endpoint.scheme != "http" && endpoint.scheme != "https") {
        return wrong("the scheme must be http or https");
    }
    const size_t slash = rest.find('/');
    endpoint.host = lower(rest.substr(0, slash));
    if (slash != std::string::npos) {
        endpoint.prefix = rest.substr(slash);
    }
    while (endpoint.prefix.ends_with('/')) {
        endpoint.prefix.pop_back();
    }
    if (endpoint.host.empty()) {
        return wrong("names no host");
    }
    if (endpoint.host.find('@') != std::string::npos) {
        return Status::invalidParam(
            "OBJ: endpoint_override holds a user's name or password; keys "
            "are given as access_key and secret_key");
    }
    if (endpoint.host.find_first_of(" ?#\\\"<>%") != std::string::npos ||
        endpoint.prefix.find_first_of(" ?#\\\"<>") != std::string::npos) {
        return wrong("must be scheme://host:port, with a path at most");
    }
    const std::string port = endpoint.scheme == "http" ? ":80" : ":443";
    if (endpoint.host.ends_with(port)) {  // signed as libcurl sends it
        endpoint.host.resize(endpoint.host.size() - port.size());
    }
    if (withoutPort(endpoint.host).empty()) {
        return wrong("names no host");
    }
    return endpoint;
}

std::string whyPathStyle(const Endpoint& endpoint, const std::string& bucket) {
    const std::string_view host = withoutPort(endpoint.host);
    if (isIpAddress(host)) {
        return "the endpoint is an IP address";
    }
    if (host.find('.') == std::string_view::npos) {
        return "the endpoint's name has a single label";
    }
    if (!isDnsBucket(bucket)) {
        return "the bucket's name is no host name";
    }
    if (endpoint.scheme == "https" && bucket.find('.') != std::string::npos) {
        return "no certificate covers a bucket's name with dots";
    }
    return {};
}

namespace {

Status locate(const Parameters& parameters,
              const Profile& profile,
              Settings& settings,
              std::vector<std::string>& notes) {
    const auto config = profile.config();
    const auto in_config = [&config](const char* key) {
        const auto found = config.find(key);
        return found != config.end() ? found->second : std::string();
    };
    const auto first = [](std::initializer_list<std::string> values) {
        for (const std::string& value : values) {
            if (!value.empty()) {
                return value;
            }
        }
        return std::string();
    };
    settings.region = first({textSetting(parameters, "region"),
                             fromEnvironment({"AWS_REGION", "AWS_DEFAULT_REGION"}),
                             in_config("region"), "us-east-1"});
    settings.bucket =
        first({textSetting(parameters, "bucket"), fromEnvironment({"AWS_DEFAULT_BUCKET"})});
    if (settings.bucket.empty()) {
        return Status::invalidParam(
            "OBJ: no bucket: neither the parameter bucket nor NIXL_OBJ_BUCKET nor "
            "AWS_DEFAULT_BUCKET names one");
    }
    if (settings.bucket.find_first_of("/?#% \n\r") != std::string::npos) {
        return Status::invalidParam("OBJ: bucket \"" + settings.bucket +
                                    "\": a name of letters, digits, dots and dashes is wanted");
    }
    const std::string place = first({textSetting(parameters, "endpoint_override"),
                                     fromEnvironment({"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}),
                                     in_config("endpoint_url")});
    const std::string scheme = textSetting(parameters, "scheme");
    // To AWS itself bytes go encrypted unless somebody asks for the contrary.
    const std::string fallback = place.empty() ? "https" : "http";
    Result<Endpoint> endpoint = parseEndpoint(place.empty() ? awsHost(settings.region) : place,
                                              scheme.empty() ? fallback : lower(scheme));
    if (!endpoint.ok()) {
        return endpoint.status();
    }
    settings.endpoint = endpoint.value();
    if (parameters.flag("use_virtual_addressing")) {
        const std::string why = whyPathStyle(settings.endpoint, settings.bucket);
        settings.endpoint.virtualHost = why.empty();
        if (!why.empty()) {
            notes.push_back("OBJ: bucket \"" + settings.bucket + "\" at " +
                            settings.endpoint.text() + ": path style, since " + why);
        }
    }
    return {};
}

}  // namespace

Result<Settings> readSettings(const Parameters& parameters,
                              const Profile& profile,
                              std::vector<std::string>& notes) {
    Settings settings;
    NIXL_RETURN_IF_ERROR(locate(parameters, profile, settings, notes));
    settings.threads = static_cast<unsigned>(parameters.integer("num_threads"));
    settings.connections = static_cast<unsigned>(parameters.integer("max_connections"));
    settings.caBundle = textSetting(parameters, "ca_bundle");
    if (settings.caBundle.empty()) {
        settings.caBundle = fromEnvironment({"AWS_CA_BUNDLE"});
    }
    if (!settings.caBundle.empty() && !std::ifstream(settings.caBundle)) {
        return Status::invalidParam("OBJ: ca_bundle \"" + settings.caBundle +
                                    "\": the file cannot be read");
    }
    settings.checksumRequired = parameters.text("req_checksum") == "required";
    settings.checksum =
        parameters.text("checksum_algorithm") == "SHA256" ? Checksum::SHA256 : Checksum::CRC32C;
    settings.signPayload = parameters.flag("sign_payload");
    settings.partSize = parameters.size("part_size");
    settings.multipartThreshold = parameters.size("multipart_threshold");
    settings.joinGap = parameters.size("join_gap");
    settings.mergeWrites = parameters.text("partial_write") == "merge";
    settings.mergeLimit = parameters.size("merge_limit");
    settings.connectTimeout = parameters.seconds("connect_timeout");
    settings.idleTimeout = parameters.seconds("idle_timeout");
    settings.attempts = static_cast<unsigned>(parameters.integer("max_attempts"));
    settings.retryDelay = parameters.seconds("retry_delay");
    settings.retryMaxDelay = parameters.seconds("retry_max_delay");
    return settings;
}

}  // namespace nixl::obj
