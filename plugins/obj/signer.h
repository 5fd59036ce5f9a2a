// AWS Signature Version 4: signs one request. No state, no clock of its own; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nixl::obj {

using Pairs = std::vector<std::pair<std::string, std::string>>;

// What is signed. Names of headers in lower case; all of them are signed, and the host must be
// among them.
struct SignRequest {
    std::string method = {};
    std::string path = {};  // as it is sent: encoded
    Pairs query = {};       // as they are sent: encoded
    Pairs headers = {};
    std::string payloadHash = {};  // hexadecimal SHA-256, or "UNSIGNED-PAYLOAD"
    std::string time = {};         // "20130524T000000Z"
    std::string region = {};
    std::string service = "s3";
};

struct Signature {
    std::string canonicalRequest;
    std::string stringToSign;
    std::string signature;
    std::string authorization;  // the value of the header
};

Signature sign(const SignRequest& request,
               const std::string& access_key,
               std::string_view secret_key);

// "20130524T000000Z" of seconds since 1970.
std::string signingTime(int64_t seconds);

}  // namespace nixl::obj
