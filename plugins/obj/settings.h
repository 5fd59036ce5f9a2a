// The parameters of the backend, with what the environment and the user's files add, and where the
// store is. Values.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "nixl/plugin.h"

namespace nixl::obj {

enum class Checksum : uint8_t { CRC32C, SHA256 };

// Where requests go.
struct Endpoint {
    std::string scheme;  // http or https
    std::string host;    // with ":port" where it is not the scheme's own
    std::string prefix;  // a path before the bucket, without a slash at its end; often empty
    bool virtualHost = false;

    std::string text() const { return scheme + "://" + host + prefix; }
};

struct Settings {
    unsigned threads = 4;
    unsigned connections = 32;
    Endpoint endpoint;
    std::string region;
    std::string bucket;
    std::string caBundle;
    bool checksumRequired = true;
    Checksum checksum = Checksum::CRC32C;
    bool signPayload = false;
    uint64_t partSize = 0;
    uint64_t multipartThreshold = 0;
    uint64_t joinGap = 0;
    bool mergeWrites = false;
    uint64_t mergeLimit = 0;
    double connectTimeout = 5;
    double idleTimeout = 30;
    unsigned attempts = 5;
    double retryDelay = 0.1;
    double retryMaxDelay = 20;
};

// Sections of an INI file as AWS's tools write them: name → key → value. Unreadable or missing:
// none. Lines that are none are skipped.
using Sections = std::map<std::string, std::map<std::string, std::string>>;
Sections parseIni(std::string_view text);
Sections readIni(const std::string& path);

// The first of these variables of the environment that is set and not empty.
std::string fromEnvironment(std::initializer_list<const char*> names);

// The files that AWS's tools keep, and the profile to use.
struct Profile {
    std::string name;
    std::string credentialsPath;
    std::string configPath;

    std::map<std::string, std::string> credentials() const;
    std::map<std::string, std::string> config() const;
};
Profile chooseProfile(const Parameters& parameters);

// Reads the parameters; a text parameter that was not given comes from NIXL_OBJ_<NAME>, then from
// AWS's own variables, then from the profile. `notes`: lines for the log.
Result<Settings> readSettings(const Parameters& parameters,
                              const Profile& profile,
                              std::vector<std::string>& notes);
// The value of a text parameter, else of NIXL_OBJ_<NAME>.
std::string textSetting(const Parameters& parameters, const char* name);

Result<Endpoint> parseEndpoint(const std::string& text, const std::string& scheme);
// Why this bucket cannot stand before the host's name; empty: it can.
std::string whyPathStyle(const Endpoint& endpoint, const std::string& bucket);

}  // namespace nixl::obj
