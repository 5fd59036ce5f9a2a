// Reads the keys that a container's or an instance's endpoint gives; see credentials.h. Apart, as
// the JSON library takes long to compile.
#include <nlohmann/json.hpp>

#include "credentials.h"
#include "crypto.h"
#include "xml.h"

namespace nixl::obj {

Result<CredentialsPtr> parseCredentials(std::string_view json, const std::string& origin) {
    constexpr size_t kMost = 1 << 20;
    const auto parsed = json.size() <= kMost ? nlohmann::json::parse(json, nullptr, false)
                                             : nlohmann::json(nlohmann::json::value_t::discarded);
    if (!parsed.is_object()) {
        return Status::backend("OBJ: " + origin + ": the answer is no JSON object");
    }
    const auto text = [&parsed](const char* key) {
        const auto found = parsed.find(key);
        return found != parsed.end() && found->is_string() ? found->get<std::string>()
                                                           : std::string();
    };
    auto keys = std::make_shared<Credentials>();
    keys->accessKey = text("AccessKeyId");
    std::string secret = text("SecretAccessKey");
    const std::string token = text("Token");
    const std::string expiration = text("Expiration");
    if (keys->accessKey.empty() || secret.empty()) {
        return Status::backend("OBJ: " + origin + ": the answer holds no keys");
    }
    keys->secretKey = std::make_shared<const GuardedText>(secret);
    wipe(secret);
    if (!token.empty()) {
        keys->sessionToken = std::make_shared<const GuardedText>(token);
    }
    if (!expiration.empty()) {
        const auto time = parseIsoTime(expiration);
        if (!time) {
            return Status::backend("OBJ: " + origin + ": Expiration \"" + expiration +
                                   "\" is no time");
        }
        keys->expires = *time;
    }
    keys->origin = origin;
    return CredentialsPtr(std::move(keys));
}

}  // namespace nixl::obj
