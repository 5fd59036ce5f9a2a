// Names of plugins and parameters: comparing without case, and guessing what a typo meant.
// Pure functions, any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nixl::backend {

bool sameName(std::string_view left, std::string_view right) noexcept;
std::string upperCase(std::string_view text);
std::string lowerCase(std::string_view text);

// What a word says, in any case: true, yes, y, on, enable, 1, and their opposites; else empty.
std::optional<bool> readFlag(std::string_view word) noexcept;
inline constexpr const char* kFlagMust =
    "must be one of true, false, 1, 0, yes, no, y, n, on, off, enable, disable";

// The entry of `known` nearest to `wanted` (at most a third of its letters differ), or empty.
std::string nearestName(std::string_view wanted, const std::vector<std::string>& known);

// "a, b, c"; `empty` where there is none.
std::string joinNames(const std::vector<std::string>& names, std::string_view empty = "none");

}  // namespace nixl::backend
