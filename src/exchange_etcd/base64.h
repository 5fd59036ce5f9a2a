// Base64 as etcd's gateway takes it: the standard alphabet, padded. Functions; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nixl::exchange_etcd {

std::string toBase64(std::string_view bytes);
// None for anything but whole, padded base64.
std::optional<std::string> fromBase64(std::string_view text);

}  // namespace nixl::exchange_etcd
