// See plugins.h.
#include "backend/plugins.h"

#include <algorithm>
#include <set>

#include <dlfcn.h>

#include "backend/names.h"
#include "backend/plugin_files.h"
#include "backend/static_plugins.h"

namespace nixl::backend {
namespace {

bool answersTo(const PluginTable& table, std::string_view name) {
    if (sameName(table.name, name)) {
        return true;
    }
    for (const char* const* alias = table.aliases; alias != nullptr && *alias != nullptr; ++alias) {
        if (sameName(*alias, name)) {
            return true;
        }
    }
    return false;
}

const char* kindName(PluginKind kind) {
    return kind == PluginKind::BACKEND ? "backend" : "telemetry exporter";
}

std::string describeFolders(const std::vector<PluginFolder>& folders) {
    std::vector<std::string> shown;
    for (const PluginFolder& folder : folders) {
        shown.push_back(folder.path + " (" + folder.why +
                        (folder.readable ? ")" : ", no readable folder)"));
    }
    return joinNames(shown, "no folder at all (NIXL_PLUGIN_DIR is not set)");
}

Status wrongName(std::string_view name) {
    return Status::invalidParam("plugin name \"" + std::string(name.substr(0, 100)) +
                                "\": must be 1 to 64 letters, digits, '_', '-' or '.'");
}

bool isName(std::string_view name) {
    constexpr size_t kLongest = 64;
    return !name.empty() && name.size() <= kLongest &&
           std::all_of(name.begin(), name.end(), [](char c) {
               return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '_' || c == '-' || c == '.';
           });
}

Status notFound(std::string_view name,
                PluginKind kind,
                const std::vector<PluginFolder>& folders,
                const std::vector<std::string>& available,
                const std::string& failures) {
    std::string text = std::string(kindName(kind)) + " plugin \"" + std::string(name) +
                       "\" not found: no " + std::string(pluginFilePrefix(kind)) + lowerCase(name) +
                       ".so in " + describeFolders(folders);
    const std::string guess = nearestName(name, available);
    text += guess.empty() ? "." : "; did you mean " + guess + "?";
    text += " Available: " + joinNames(available) +
            ". NIXL_PLUGIN_DIR names further folders (separated by ':')";
    if (!failures.empty()) {
        text += ". Could not look for an alias in: " + failures;
    }
    return Status::notFound(std::move(text));
}

void addFailure(std::string& failures, const std::string& text) {
    failures.append(failures.empty() ? "" : "; ").append(text);
}

}  // namespace

PluginRegistry::PluginRegistry() : builtIn_(staticPlugins()) {}

PluginRegistry& PluginRegistry::instance() {
    static constinit PluginRegistry* registry = nullptr;  // never destroyed: plugins stay
    const MutexLock lock(base::processMutex(base::ProcessLock::PLUGINS));
    if (registry == nullptr) {
        registry = new PluginRegistry;
    }
    return *registry;
}

std::vector<std::string> PluginRegistry::names(PluginKind kind) {
    std::set<std::string> found;
    {
        const MutexLock lock(mutex_);
        for (const PluginTable* table : builtIn_) {
            if (table->kind == kind) {
                found.insert(upperCase(table->name));
            }
        }
    }
    for (const PluginFolder& folder : pluginFolders()) {
        const auto files = pluginFiles(folder.path, kind);
        for (const PluginFile& file : files.ok() ? files.value() : std::vector<PluginFile>()) {
            if (mayBePlugin(file.path)) {
                found.insert(upperCase(file.name));
            }
        }
    }
    return {found.begin(), found.end()};
}

Result<const PluginTable*> PluginRegistry::find(std::string_view name, PluginKind kind) {
    if (!isName(name)) {
        return wrongName(name);
    }
    if (const PluginTable* table = findBuiltIn(name, kind); table != nullptr) {
        return table;
    }
    const std::vector<PluginFolder> folders = pluginFolders();
    std::string failures;
    ErrorCode code = ErrorCode::OK;
    for (const PluginFolder& folder : folders) {
        const auto files = pluginFiles(folder.path, kind);
        if (!files.ok()) {
            code = files.status().code();
            addFailure(failures, files.status().message());
            continue;
        }
        for (const PluginFile& file : files.value()) {
            if (!sameName(file.name, name)) {
                continue;
            }
            Result<const PluginTable*> table = load(file.path, kind);
            if (table.ok()) {
                return table;
            }
            code = code == ErrorCode::OK ? table.status().code() : code;
            addFailure(failures, table.status().message());
        }
    }
    // Loaded before from a folder that is not searched any more: still there.
    if (const PluginTable* table = findLoaded(name, kind); table != nullptr) {
        return table;
    }
    if (!failures.empty()) {
        return Status(code, std::string(kindName(kind)) + " plugin \"" + std::string(name) +
                                "\" cannot be loaded: " + failures);
    }
    if (const PluginTable* table = findByAlias(name, kind, failures); table != nullptr) {
        return table;
    }
    return notFound(name, kind, folders, names(kind), failures);
}

Status PluginRegistry::add(const PluginTable& table) {
    NIXL_RETURN_IF_ERROR(checkPluginTable(&table, table.kind, "a plugin of the program"));
    const MutexLock lock(mutex_);
    for (const PluginTable* known : builtIn_) {
        if (known == &table) {
            return {};
        }
        if (known->kind == table.kind && answersTo(*known, table.name)) {
            return Status::notAllowed("plugin \"" + std::string(table.name) +
                                      "\" of the program: there is one of this name already");
        }
    }
    builtIn_.push_back(&table);
    return {};
}

std::string PluginRegistry::pathOf(const PluginTable* table) {
    const MutexLock lock(mutex_);
    for (const Loaded& loaded : loaded_) {
        if (loaded.table == table) {
            return loaded.path;
        }
    }
    return {};
}

const PluginTable* PluginRegistry::findBuiltIn(std::string_view name, PluginKind kind) {
    const MutexLock lock(mutex_);
    for (const PluginTable* table : builtIn_) {
        if (table->kind == kind && answersTo(*table, name)) {
            return table;
        }
    }
    return nullptr;
}

const PluginTable* PluginRegistry::findLoaded(std::string_view name, PluginKind kind) {
    const MutexLock lock(mutex_);
    for (const Loaded& loaded : loaded_) {
        if (loaded.table->kind == kind && answersTo(*loaded.table, name)) {
            return loaded.table;
        }
    }
    return nullptr;
}

// An alias is known only to the plugin itself, so this loads what lies in the search path.
const PluginTable* PluginRegistry::findByAlias(std::string_view name,
                                               PluginKind kind,
                                               std::string& failures) {
    for (const PluginFolder& folder : pluginFolders()) {
        const auto files = pluginFiles(folder.path, kind);
        for (const PluginFile& file : files.ok() ? files.value() : std::vector<PluginFile>()) {
            if (!mayBePlugin(file.path)) {
                continue;
            }
            const Result<const PluginTable*> table = load(file.path, kind);
            if (!table.ok()) {
                addFailure(failures, table.status().message());
            } else if (answersTo(*table.value(), name)) {
                return table.value();
            }
        }
    }
    return nullptr;
}

Result<const PluginTable*> PluginRegistry::load(const std::string& path, PluginKind kind) {
    {
        const MutexLock lock(mutex_);
        for (const Loaded& loaded : loaded_) {
            if (loaded.path == path && loaded.table->kind == kind) {
                return loaded.table;
            }
        }
    }
    if (!mayBePlugin(path)) {
        return Status::mismatch(path + ": exports no " + kPluginSymbol +
                                ", so it is no plugin of this library (plugins of other versions "
                                "cannot be used: rebuild it with this version's headers)");
    }
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle == nullptr) {
        const char* const said = dlerror();
        std::string message = said != nullptr ? said : "the loader gave no reason";
        const std::string hint = loadHint(message);
        if (!message.starts_with(path)) {
            message = path + ": " + message;
        }
        return Status::notFound(hint.empty() ? message : message + "; " + hint);
    }
    const auto entry = reinterpret_cast<PluginEntry>(dlsym(handle, kPluginSymbol));
    if (entry == nullptr) {
        return Status::mismatch(path + ": exports no function " + kPluginSymbol +
                                " (is NIXL_EXPORT_PLUGIN missing?)");
    }
    const PluginTable* const table = entry();
    NIXL_RETURN_IF_ERROR(checkPluginTable(table, kind, path));
    const MutexLock lock(mutex_);
    for (const Loaded& loaded : loaded_) {
        if (loaded.table == table) {
            return table;  // another thread was faster, or a link to the same file
        }
    }
    loaded_.push_back({table, path});
    return table;
}

}  // namespace nixl::backend
