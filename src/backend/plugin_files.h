// Where plugin files lie: the search path and what is in it. Functions, any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"
#include "nixl/plugin.h"

namespace nixl::backend {

struct PluginFolder {
    std::string path;
    std::string why;  // "NIXL_PLUGIN_DIR" or "beside the library"
    bool readable = false;
};

struct PluginFile {
    std::string name;  // what stands between the prefix and ".so"
    std::string path;
};

// "libplugin_" or, for telemetry exporters, "libtelemetry_exporter_".
std::string_view pluginFilePrefix(PluginKind kind);

// The folders to look in, in order: those of NIXL_PLUGIN_DIR (separated by ':'), then `plugins`
// and `nixl/plugins` beside the file this code was loaded from. The environment is read each time.
std::vector<PluginFolder> pluginFolders();

// The plugin files of one folder, sorted by name; empty where it is none or may not be read. An
// error where that cannot be told now, as with no descriptor left.
Result<std::vector<PluginFile>> pluginFiles(const std::string& folder, PluginKind kind);

// Whether the file mentions the symbol a plugin must export. Looked at without loading it, since
// loading runs foreign code; a file that cannot be read counts as one, so that the loader names
// the reason.
bool mayBePlugin(const std::string& path);

// What to do about a message of dlopen(): what to install, what to rebuild. Empty: no idea.
std::string loadHint(std::string_view message);

}  // namespace nixl::backend
