// How a plugin presents itself: one exported C function returning one table. The loader checks the
// ABI version before it reads anything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "nixl/backend.h"
#include "nixl/error.h"
#include "nixl/exporter.h"
#include "nixl/services.h"

namespace nixl {

// Changes with every incompatible change of backend.h, device.h, services.h,
// lane.h or this file.
inline constexpr uint32_t kPluginAbi = 7;

enum class PluginKind : uint8_t { BACKEND = 0, TELEMETRY_EXPORTER = 1 };

enum class ParameterType : uint8_t {
    BOOL,      // true false 1 0 yes no on off
    INTEGER,   // decimal, within [minimum, maximum]
    SIZE,      // bytes: decimal with an optional K, M, G (powers of 1024)
    DURATION,  // seconds: decimal with an optional us, ms, s
    STRING,
    CHOICE,  // one of `choices`, separated by '|'
    SECRET,  // as STRING, but nothing ever shows its value
};

// One parameter of a plugin. A name that ends in '*' declares a prefix: any key that starts so is
// passed on as text.
struct ParameterSpec {
    const char* name;
    ParameterType type;
    const char* defaultValue;
    const char* help;
    int64_t minimum = INT64_MIN;
    int64_t maximum = INT64_MAX;
    const char* choices = nullptr;
};

// Validated parameters: every declared key is present (its default where not given). The typed
// getters are for declared keys of that type.
class NIXL_API Parameters {
  public:
    Parameters() = default;
    explicit Parameters(std::map<std::string, std::string> values) : values_(std::move(values)) {}

    bool given(std::string_view name) const;  // set by the user, not by default
    std::string text(std::string_view name) const;
    bool flag(std::string_view name) const;
    int64_t integer(std::string_view name) const;
    uint64_t size(std::string_view name) const;
    double seconds(std::string_view name) const;
    const std::map<std::string, std::string>& values() const { return values_; }
    void set(std::string name, std::string value, bool by_user);

  private:
    std::map<std::string, std::string> values_;
    std::map<std::string, bool> given_;
};

struct PluginTable {
    uint32_t abi;  // kPluginAbi of the headers it was built with; first for ever
    PluginKind kind;
    const char* name;            // "NAME"; compared without case
    const char* const* aliases;  // null-terminated, or null
    const char* version;
    const char* help;  // one line: what it is for
    const MemType* memoryTypes;
    size_t memoryTypeCount;
    const ParameterSpec* parameters;
    size_t parameterCount;
    // Never throws. What it needs of the core beyond the call it keeps by reference to `services`.
    Result<std::unique_ptr<Backend>> (*createBackend)(const Parameters& parameters,
                                                      PluginServices& services);
    // Telemetry exporters only, else null.
    const nixl_exporter* exporter;
};

using PluginEntry = const PluginTable* (*)();
inline constexpr const char* kPluginSymbol = "nixlPluginTable";

// In one source file of the plugin: NIXL_EXPORT_PLUGIN(table); static builds rename the symbol.
#ifdef NIXL_STATIC_PLUGIN_NAME
#define NIXL_PLUGIN_CONCAT_(a, b) a##b
#define NIXL_PLUGIN_CONCAT(a, b) NIXL_PLUGIN_CONCAT_(a, b)
#define NIXL_EXPORT_PLUGIN(table)                                                         \
    extern "C" const ::nixl::PluginTable* NIXL_PLUGIN_CONCAT(nixlPluginTable_,            \
                                                             NIXL_STATIC_PLUGIN_NAME)() { \
        return &(table);                                                                  \
    }
#else
#define NIXL_EXPORT_PLUGIN(table)                                      \
    extern "C" NIXL_API const ::nixl::PluginTable* nixlPluginTable() { \
        return &(table);                                               \
    }
#endif

}  // namespace nixl
