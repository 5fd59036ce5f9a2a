// The directory where the processes of one user leave what their agents count. Files there are
// replaced whole, so who reads sees an old one or a new one. Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "nixl/error.h"

namespace nixl::telemetry {

// NIXL_TELEMETRY_DIR, else `nixl` in XDG_RUNTIME_DIR, else /tmp/nixl-UID.
std::string defaultDirectory();

// Makes it (0700) where it is not there. NOT_ALLOWED where others than this user could put files
// of theirs in place of ours: not the user's own, or writable for others without a sticky bit.
Status openDirectory(const std::string& path);

// Writes `name` in it, readable for the user alone.
Status replaceFile(const std::string& directory, const std::string& name, std::string_view text);

}  // namespace nixl::telemetry
