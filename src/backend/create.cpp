// Creates a backend from its table, with the wrappers that were asked for; see wrappers.h.
#include <cstdlib>
#include <exception>
#include <optional>

#include "backend/names.h"
#include "backend/plugins.h"
#include "backend/wrappers.h"

namespace nixl::backend {
namespace {

constexpr const char* kFaultKey = "nixl_fault";
constexpr const char* kTraceKey = "nixl_trace";

// Takes a key that the core understands for every backend.
std::optional<std::string> take(std::map<std::string, std::string>& given, const char* key) {
    const auto found = given.find(key);
    if (found == given.end()) {
        return std::nullopt;
    }
    std::string value = std::move(found->second);
    given.erase(found);
    return value;
}

std::string fromEnvironment(const char* name) {
    const char* const value = std::getenv(name);
    return value != nullptr ? value : "";
}

// "NAME:plan;NAME:plan" or one plan for all: the part for the backend `name`.
std::string planFor(std::string_view text, std::string_view name) {
    while (!text.empty()) {
        const std::string_view item = text.substr(0, text.find(';'));
        text.remove_prefix(std::min(item.size() + 1, text.size()));
        const size_t colon = item.find(':');
        if (colon == std::string_view::npos) {
            return std::string(item);
        }
        if (sameName(item.substr(0, colon), name)) {
            return std::string(item.substr(colon + 1));
        }
    }
    return {};
}

// A truth value, or the names of the backends to trace, separated by commas.
bool traceWanted(std::string_view text, std::string_view name) {
    for (const char* no : {"", "0", "false", "no", "off"}) {
        if (sameName(text, no)) {
            return false;
        }
    }
    for (const char* yes : {"1", "true", "yes", "on"}) {
        if (sameName(text, yes)) {
            return true;
        }
    }
    while (!text.empty()) {
        const std::string_view item = text.substr(0, text.find(','));
        if (sameName(item, name)) {
            return true;
        }
        text.remove_prefix(std::min(item.size() + 1, text.size()));
    }
    return false;
}

Result<std::unique_ptr<Backend>> callPlugin(const PluginTable& table,
                                            const Parameters& parameters,
                                            PluginServices& services) {
    // The contract says that plugins do not throw; one that does shall not end the process.
    try {
        return table.createBackend(parameters, services);
    } catch (const std::exception& error) {
        return Status(ErrorCode::UNKNOWN, std::string("it threw \"") + error.what() + "\"");
    } catch (...) {
        return Status(ErrorCode::UNKNOWN, "it threw an exception");
    }
}

Status checkBackend(const PluginTable& table, const Backend* backend) {
    if (backend == nullptr) {
        return {ErrorCode::UNKNOWN,
                std::string(table.name) + ": createBackend returned no backend"};
    }
    if (!sameName(backend->info().name, table.name)) {
        return {ErrorCode::UNKNOWN, std::string(table.name) + ": its backend calls itself \"" +
                                        backend->info().name + "\""};
    }
    if (backend->info().memoryTypes.empty()) {
        return {ErrorCode::UNKNOWN, std::string(table.name) + ": its backend has no memory type"};
    }
    return {};
}

// What is kept for users to look at has no secrets in it.
void hideSecrets(const PluginTable& table, Parameters& parameters) {
    for (size_t i = 0; i < table.parameterCount; ++i) {
        const ParameterSpec& spec = table.parameters[i];
        if (spec.type == ParameterType::SECRET && !parameters.text(spec.name).empty()) {
            parameters.set(spec.name, "***", parameters.given(spec.name));
        }
    }
}

}  // namespace

Result<CreatedBackend> createBackend(const PluginTable& table,
                                     std::map<std::string, std::string> given,
                                     PluginServices& services) {
    const std::optional<std::string> fault = take(given, kFaultKey);
    const std::optional<std::string> trace = take(given, kTraceKey);
    Result<FaultPlan> plan =
        FaultPlan::parse(fault ? *fault : planFor(fromEnvironment("NIXL_FAULT"), table.name));
    if (!plan.ok()) {
        return Status::invalidParam(std::string(table.name) + ": " +
                                    (fault ? kFaultKey : "NIXL_FAULT") + ": " +
                                    plan.status().message());
    }
    // The log puts the backend's name in front by itself.
    const size_t prefix = std::string_view(table.name).size() + 2;
    auto parameters = validateParameters(table, given, [&](const std::string& warning) {
        services.log(LogLevel::WARN, std::string_view(warning).substr(prefix));
    });
    if (!parameters.ok()) {
        return parameters.status();
    }
    auto made = callPlugin(table, parameters.value(), services);
    if (!made.ok()) {
        const Status& status = made.status();
        return Status(status.code(), std::string("backend ") + table.name + ": " + status.message(),
                      status.systemErrno());
    }
    CreatedBackend created{std::move(made).value(), std::move(parameters).value()};
    hideSecrets(table, created.parameters);
    NIXL_RETURN_IF_ERROR(checkBackend(table, created.backend.get()));
    if (plan.value().any()) {
        created.backend = wrapFault(std::move(created.backend), plan.value());
    }
    if (traceWanted(trace ? *trace : fromEnvironment("NIXL_TRACE"), table.name)) {
        created.backend = wrapTrace(std::move(created.backend), services);
    }
    return created;
}

}  // namespace nixl::backend
