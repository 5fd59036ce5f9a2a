// Checks the table of a plugin before anything uses it; see plugins.h.
#include <set>
#include <string>

#include "backend/plugins.h"

namespace nixl::backend {
namespace {

bool isEmpty(const char* text) {
    return text == nullptr || *text == '\0';
}

Status checkSpec(const ParameterSpec& spec, const std::string& where) {
    const std::string what = where + ": parameter \"" + spec.name + "\": ";
    if (spec.type > ParameterType::SECRET) {
        return Status::mismatch(what + "its type is unknown");
    }
    if (spec.type == ParameterType::CHOICE && isEmpty(spec.choices)) {
        return Status::mismatch(what + "a CHOICE without choices");
    }
    const bool prefix = std::string_view(spec.name).ends_with('*');
    if (!prefix && !isEmpty(spec.defaultValue)) {
        if (const Status fits = checkParameter(spec, spec.defaultValue); !fits.ok()) {
            return Status::mismatch(what + "its default \"" + spec.defaultValue + "\" " +
                                    fits.message());
        }
    }
    return {};
}

Status checkSpecs(const PluginTable& table, const std::string& where) {
    if (table.parameterCount > 0 && table.parameters == nullptr) {
        return Status::mismatch(where + ": has parameterCount but no parameters");
    }
    std::set<std::string_view> seen;
    for (size_t i = 0; i < table.parameterCount; ++i) {
        const ParameterSpec& spec = table.parameters[i];
        if (isEmpty(spec.name)) {
            return Status::mismatch(where + ": parameter " + std::to_string(i) + " has no name");
        }
        if (!seen.insert(spec.name).second) {
            return Status::mismatch(where + ": parameter \"" + spec.name + "\" stands twice");
        }
        NIXL_RETURN_IF_ERROR(checkSpec(spec, where));
    }
    return {};
}

Status checkMemoryTypes(const PluginTable& table, const std::string& where) {
    if (table.memoryTypeCount == 0 || table.memoryTypes == nullptr) {
        return Status::mismatch(where + ": declares no memory type");
    }
    for (size_t i = 0; i < table.memoryTypeCount; ++i) {
        if (table.memoryTypes[i] > MemType::FILE) {
            return Status::mismatch(where + ": memory type " +
                                    std::to_string(static_cast<int>(table.memoryTypes[i])) +
                                    " is unknown");
        }
    }
    return {};
}

}  // namespace

Status checkPluginTable(const PluginTable* table, PluginKind kind, std::string_view path) {
    const std::string file(path);
    if (table == nullptr) {
        return Status::mismatch(file + ": " + kPluginSymbol + "() returned null");
    }
    if (table->abi != kPluginAbi) {
        return Status::mismatch(file + ": built for plugin ABI " + std::to_string(table->abi) +
                                ", this library has " + std::to_string(kPluginAbi) +
                                "; rebuild it with this version's headers");
    }
    if (isEmpty(table->name)) {
        return Status::mismatch(file + ": its table has no name");
    }
    const std::string where = file + " (" + table->name + ")";
    if (table->kind != kind) {
        return Status::mismatch(
            where + ": is " +
            (kind == PluginKind::BACKEND ? "no backend" : "no telemetry exporter"));
    }
    if (kind == PluginKind::TELEMETRY_EXPORTER) {
        return table->exporter != nullptr ? checkSpecs(*table, where)
                                          : Status::mismatch(where + ": has no exporter");
    }
    if (table->createBackend == nullptr) {
        return Status::mismatch(where + ": has no createBackend");
    }
    NIXL_RETURN_IF_ERROR(checkMemoryTypes(*table, where));
    return checkSpecs(*table, where);
}

}  // namespace nixl::backend
