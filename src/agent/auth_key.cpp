// See auth_key.h.
#include "agent/auth_key.h"

#include <cerrno>
#include <fstream>
#include <sstream>

#include <sys/stat.h>

#include "base/system_error.h"

namespace nixl::agent {

Result<std::string> readAuthKey(const AgentConfig& config) {
    std::string key = config.authKey;
    if (key.empty() && !config.authKeyFile.empty()) {
        struct stat info {};
        if (stat(config.authKeyFile.c_str(), &info) != 0) {
            return Status::invalidParam("auth_key_file " + config.authKeyFile + ": " +
                                        base::errnoText(errno));
        }
        if ((info.st_mode & 077) != 0) {
            return Status::invalidParam("auth_key_file " + config.authKeyFile +
                                        " can be read by others; its mode must be 0600");
        }
        std::ifstream file(config.authKeyFile, std::ios::binary);
        std::stringstream text;
        text << file.rdbuf();
        key = text.str();
        while (!key.empty() && (key.back() == '\n' || key.back() == '\r')) {
            key.pop_back();
        }
        if (key.empty()) {
            return Status::invalidParam("auth_key_file " + config.authKeyFile + " is empty");
        }
    }
    if (!key.empty() && key.size() < 16) {
        return Status::invalidParam("an authentication key of " + std::to_string(key.size()) +
                                    " bytes; at least 16 are needed");
    }
    return key;
}

}  // namespace nixl::agent
