// How an etcd is reached: read from text, checked. Values.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "nixl/error.h"

namespace nixl::exchange_etcd {

struct Settings {
    std::vector<std::string> endpoints;  // "http://host:port"
    std::string ca, certificate, key;    // files
    std::string user, password;
    std::chrono::seconds leaseTime{15};
    std::chrono::milliseconds timeout{5000};  // of one call, over all endpoints

    bool operator==(const Settings&) const = default;
};

// Of "endpoints" (separated by commas or semicolons; "http://" may be left out), "ca", "cert",
// "key", "user", "password", "password_file", "lease_time" and "timeout" (seconds). Other names are
// the caller's to refuse. INVALID_PARAM names the setting, its value and what it may be.
Result<Settings> readSettings(const std::map<std::string, std::string>& texts);

}  // namespace nixl::exchange_etcd
