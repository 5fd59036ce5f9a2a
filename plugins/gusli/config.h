// GUSLI's list of devices: what the parameter config_file names or holds. Values; no thread rule.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

namespace nixl::gusli {

enum class Kind : char { FILE = 'F', KERNEL = 'K', NETWORK = 'N' };
enum class Access : char { READ = 'R', SHARED = 'W', EXCLUSIVE = 'X' };

struct DeviceConfig {
    std::string id;  // a number, or up to 16 letters and digits
    Kind kind = Kind::FILE;
    Access access = Access::SHARED;
    bool direct = false;  // for the GUSLI client
    std::string path;
    std::string security;  // "sec=0x3"; the native engine has no use for it
    size_t line = 0;       // in the list, from 1 on
};

// The devices of a list. `text` is the list itself where it has a line end or begins with '#' or
// "version=", else the path of one.
Result<std::vector<DeviceConfig>> readConfig(const std::string& text);
Result<std::vector<DeviceConfig>> parseConfig(std::string_view text, const std::string& name);

// The device that a descriptor means: by its metadata, or by its number. Null: none.
const DeviceConfig* findDevice(const std::vector<DeviceConfig>& devices,
                               uint64_t number,
                               std::string_view metadata);
// "11, 14", for messages.
std::string deviceIds(const std::vector<DeviceConfig>& devices);

}  // namespace nixl::gusli
