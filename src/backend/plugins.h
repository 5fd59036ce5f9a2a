// Finds, loads and checks plugins, and checks the parameters given to them. The registry is one
// per process and never destroyed: a loaded plugin stays until the process ends. Thread-safe; no
// lock is held while a plugin's code runs.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/plugin.h"

#include "base/fork.h"

namespace nixl::backend {

class PluginRegistry {
  public:
    static PluginRegistry& instance();
    PluginRegistry(const PluginRegistry&) = delete;
    PluginRegistry& operator=(const PluginRegistry&) = delete;

    // What can be found now, sorted, in upper case: plugins inside the library and files in the
    // search path. Nothing is loaded, so a name does not promise that its libraries are there.
    std::vector<std::string> names(PluginKind kind = PluginKind::BACKEND);

    // The table of the plugin `name` (without case, or an alias). A Status tells every path tried,
    // what the loader said and what to install. Loaded once; a failure is tried again next time.
    Result<const PluginTable*> find(std::string_view name, PluginKind kind = PluginKind::BACKEND);

    // Makes a table of the program itself known, before all files. It must stay valid.
    Status add(const PluginTable& table);

    // The file a table was loaded from; empty for one inside the library or the program.
    std::string pathOf(const PluginTable* table);

  private:
    struct Loaded {
        const PluginTable* table = nullptr;
        std::string path;
    };

    PluginRegistry();
    const PluginTable* findBuiltIn(std::string_view name, PluginKind kind);
    const PluginTable* findLoaded(std::string_view name, PluginKind kind);
    const PluginTable* findByAlias(std::string_view name, PluginKind kind, std::string& failures);
    Result<const PluginTable*> load(const std::string& path, PluginKind kind);

    Mutex& mutex_ = base::processMutex(base::ProcessLock::PLUGINS);
    std::vector<const PluginTable*> builtIn_ NIXL_GUARDED_BY(mutex_);
    std::vector<Loaded> loaded_ NIXL_GUARDED_BY(mutex_);
};

// OK, or what is wrong with the table of `path`.
Status checkPluginTable(const PluginTable* table, PluginKind kind, std::string_view path);

// The parameters to create a backend with: each declared key with its value or default. An
// ill-typed or out-of-range value is an error that names plugin, key, value and what is valid.
// Keys that are not declared are left out and named, with the valid ones, in one warning.
Result<Parameters> validateParameters(const PluginTable& table,
                                      const std::map<std::string, std::string>& given,
                                      const std::function<void(std::string)>& warn);

// OK, or what `value` should be: "must be …".
Status checkParameter(const ParameterSpec& spec, std::string_view value);

const char* parameterTypeName(ParameterType type) noexcept;

}  // namespace nixl::backend
