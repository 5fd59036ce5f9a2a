// What the client reads of etcd's JSON: numbers come as text, absent fields mean zero. Functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "exchange_etcd/base64.h"

namespace nixl::exchange_etcd {

using Json = nlohmann::json;

inline const Json& field(const Json& object, const char* name) {
    static const Json* const none = new Json();
    if (!object.is_object()) {
        return *none;
    }
    const auto found = object.find(name);
    return found == object.end() ? *none : *found;
}

inline std::string textOf(const Json& object, const char* name) {
    const Json& value = field(object, name);
    return value.is_string() ? value.get<std::string>() : std::string();
}

inline int64_t numberOf(const Json& object, const char* name) {
    const Json& value = field(object, name);
    if (value.is_number_integer()) {
        return value.get<int64_t>();
    }
    if (!value.is_string()) {
        return 0;
    }
    const auto& text = value.get_ref<const std::string&>();
    int64_t number = 0;
    const bool negative = !text.empty() && text[0] == '-';
    for (size_t i = negative ? 1 : 0; i < text.size(); ++i) {
        if (text[i] < '0' || text[i] > '9') {
            return 0;
        }
        number = static_cast<int64_t>(static_cast<uint64_t>(number) * 10 +
                                      static_cast<uint64_t>(text[i] - '0'));
    }
    return negative ? -number : number;
}

inline bool flagOf(const Json& object, const char* name) {
    const Json& value = field(object, name);
    return value.is_boolean() && value.get<bool>();
}

inline std::string bytesOf(const Json& object, const char* name) {
    return fromBase64(textOf(object, name)).value_or(std::string());
}

// The end of the range of keys that start so.
inline std::string rangeEnd(std::string prefix) {
    while (!prefix.empty() && static_cast<uint8_t>(prefix.back()) == 0xff) {
        prefix.pop_back();
    }
    if (prefix.empty()) {
        return std::string(1, '\0');  // to the end of all keys
    }
    prefix.back() = static_cast<char>(static_cast<uint8_t>(prefix.back()) + 1);
    return prefix;
}

}  // namespace nixl::exchange_etcd
