// Reads and checks parameters of plugins; see plugins.h and nixl/plugin.h.
#include <cctype>
#include <charconv>
#include <cmath>
#include <optional>

#include "backend/names.h"
#include "backend/plugins.h"

namespace nixl {
namespace {

using backend::readFlag;

std::optional<int64_t> readInteger(std::string_view text) {
    if (text.size() > 1 && text.front() == '+' && text[1] != '-') {
        text.remove_prefix(1);
    }
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
        return std::nullopt;
    }
    return value;
}

std::optional<uint64_t> readSize(std::string_view text) {
    unsigned shift = 0;
    if (!text.empty()) {
        switch (text.back()) {
            case 'k':
            case 'K':
                shift = 10;
                break;
            case 'm':
            case 'M':
                shift = 20;
                break;
            case 'g':
            case 'G':
                shift = 30;
                break;
            default:
                break;
        }
    }
    text.remove_suffix(shift != 0 ? 1 : 0);
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    // Within int64_t, so that the declared limits can be compared.
    if (error != std::errc() || end != text.data() + text.size() ||
        value > (static_cast<uint64_t>(INT64_MAX) >> shift)) {
        return std::nullopt;
    }
    return value << shift;
}

std::optional<double> readSeconds(std::string_view text) {
    double unit = 1;
    if (text.ends_with("us")) {
        unit = 1e-6;
        text.remove_suffix(2);
    } else if (text.ends_with("ms")) {
        unit = 1e-3;
        text.remove_suffix(2);
    } else if (text.ends_with('s')) {
        text.remove_suffix(1);
    }
    double value = 0;
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) ||
        value < 0) {
        return std::nullopt;
    }
    return value * unit;
}

const std::string* lookUp(const std::map<std::string, std::string>& values, std::string_view name) {
    const auto found = values.find(std::string(name));
    return found != values.end() ? &found->second : nullptr;
}

}  // namespace

bool Parameters::given(std::string_view name) const {
    const auto found = given_.find(std::string(name));
    return found != given_.end() && found->second;
}

std::string Parameters::text(std::string_view name) const {
    const std::string* const value = lookUp(values_, name);
    return value != nullptr ? *value : std::string();
}

bool Parameters::flag(std::string_view name) const {
    const std::string* const value = lookUp(values_, name);
    return value != nullptr && readFlag(*value).value_or(false);
}

int64_t Parameters::integer(std::string_view name) const {
    const std::string* const value = lookUp(values_, name);
    return value != nullptr ? readInteger(*value).value_or(0) : 0;
}

uint64_t Parameters::size(std::string_view name) const {
    const std::string* const value = lookUp(values_, name);
    return value != nullptr ? readSize(*value).value_or(0) : 0;
}

double Parameters::seconds(std::string_view name) const {
    const std::string* const value = lookUp(values_, name);
    return value != nullptr ? readSeconds(*value).value_or(0) : 0;
}

void Parameters::set(std::string name, std::string value, bool by_user) {
    given_[name] = by_user;
    values_[std::move(name)] = std::move(value);
}

namespace backend {
namespace {

bool isPrefix(const ParameterSpec& spec) {
    return std::string_view(spec.name).ends_with('*');
}

const ParameterSpec* specFor(const PluginTable& table, std::string_view key) {
    const ParameterSpec* match = nullptr;
    for (size_t i = 0; i < table.parameterCount; ++i) {
        const ParameterSpec& spec = table.parameters[i];
        const std::string_view name = spec.name;
        if (name == key) {
            return &spec;
        }
        if (isPrefix(spec) && key.starts_with(name.substr(0, name.size() - 1))) {
            match = &spec;
        }
    }
    return match;
}

std::string unit(ParameterType type) {
    return type == ParameterType::SIZE       ? " bytes"
           : type == ParameterType::DURATION ? " seconds"
                                             : "";
}

std::string range(const ParameterSpec& spec) {
    const bool low = spec.minimum != INT64_MIN;
    const bool high = spec.maximum != INT64_MAX;
    if (low && high) {
        return " from " + std::to_string(spec.minimum) + " to " + std::to_string(spec.maximum) +
               unit(spec.type);
    }
    if (low) {
        return " of at least " + std::to_string(spec.minimum) + unit(spec.type);
    }
    return high ? " of at most " + std::to_string(spec.maximum) + unit(spec.type) : "";
}

template <typename T>
bool inRange(const ParameterSpec& spec, T value) {
    return (spec.minimum == INT64_MIN || value >= static_cast<T>(spec.minimum)) &&
           (spec.maximum == INT64_MAX || value <= static_cast<T>(spec.maximum));
}

bool isChoice(std::string_view choices, std::string_view value) {
    while (true) {
        const size_t bar = choices.find('|');
        if (choices.substr(0, bar) == value) {
            return true;
        }
        if (bar == std::string_view::npos) {
            return false;
        }
        choices.remove_prefix(bar + 1);
    }
}

void warnUnknown(const PluginTable& table,
                 const std::vector<std::string>& unknown,
                 const std::function<void(std::string)>& warn) {
    std::vector<std::string> valid;
    for (size_t i = 0; i < table.parameterCount; ++i) {
        valid.emplace_back(table.parameters[i].name);
    }
    std::vector<std::string> shown;
    for (const std::string& key : unknown) {
        const std::string guess = nearestName(key, valid);
        shown.push_back(guess.empty() ? key : key + " (did you mean " + guess + "?)");
    }
    warn(std::string(table.name) + ": ignoring unknown parameter" +
         (unknown.size() > 1 ? "s " : " ") + joinNames(shown) + "; valid are: " + joinNames(valid));
}

}  // namespace

const char* parameterTypeName(ParameterType type) noexcept {
    switch (type) {
        case ParameterType::BOOL:
            return "bool";
        case ParameterType::INTEGER:
            return "integer";
        case ParameterType::SIZE:
            return "size";
        case ParameterType::DURATION:
            return "duration";
        case ParameterType::STRING:
            return "string";
        case ParameterType::CHOICE:
            return "choice";
        case ParameterType::SECRET:
            return "secret";
    }
    return "?";
}

Status checkParameter(const ParameterSpec& spec, std::string_view value) {
    switch (spec.type) {
        case ParameterType::BOOL:
            if (!readFlag(value)) {
                return Status::invalidParam(kFlagMust);
            }
            break;
        case ParameterType::INTEGER:
            if (const auto number = readInteger(value); !number || !inRange(spec, *number)) {
                return Status::invalidParam("must be an integer" + range(spec));
            }
            break;
        case ParameterType::SIZE:
            if (const auto size = readSize(value);
                !size || !inRange(spec, static_cast<int64_t>(*size))) {
                return Status::invalidParam("must be a size" + range(spec) +
                                            " (a number, optionally with K, M or G)");
            }
            break;
        case ParameterType::DURATION:
            if (const auto seconds = readSeconds(value); !seconds || !inRange(spec, *seconds)) {
                return Status::invalidParam("must be a duration" + range(spec) +
                                            " (a number, optionally with us, ms or s)");
            }
            break;
        case ParameterType::STRING:
        case ParameterType::SECRET:
            break;
        case ParameterType::CHOICE:
            if (!isChoice(spec.choices, value)) {
                return Status::invalidParam("must be one of " + std::string(spec.choices));
            }
            break;
    }
    return {};
}

Result<Parameters> validateParameters(const PluginTable& table,
                                      const std::map<std::string, std::string>& given,
                                      const std::function<void(std::string)>& warn) {
    Parameters parameters;
    for (size_t i = 0; i < table.parameterCount; ++i) {
        const ParameterSpec& spec = table.parameters[i];
        if (!isPrefix(spec)) {
            parameters.set(spec.name, spec.defaultValue != nullptr ? spec.defaultValue : "", false);
        }
    }
    std::vector<std::string> unknown;
    for (const auto& [key, value] : given) {
        const ParameterSpec* const spec = specFor(table, key);
        if (spec == nullptr) {
            unknown.push_back(key);
            continue;
        }
        if (!isPrefix(*spec)) {
            if (const Status fits = checkParameter(*spec, value); !fits.ok()) {
                return Status::invalidParam(std::string(table.name) + ": parameter " + key + "=\"" +
                                            value + "\": " + fits.message());
            }
        }
        parameters.set(key, value, true);
    }
    if (!unknown.empty() && warn) {
        warnUnknown(table, unknown, warn);
    }
    return parameters;
}

}  // namespace backend
}  // namespace nixl
