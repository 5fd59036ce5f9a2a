// An errno as text and as a Status: the only place that does so. No state, any thread.
#pragma once

#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "nixl/error.h"

namespace nixl::base {

inline std::string errnoText(int error) {
    return std::generic_category().message(error);
}

// "WHAT: reason", with the errno in the status.
inline Status systemError(std::string what, int error, ErrorCode code = ErrorCode::BACKEND) {
    what += ": ";
    what += errnoText(error);
    return {code, std::move(what), error};
}

// "WHAT PATH: reason".
inline Status systemError(std::string_view what, const std::string& path, int error) {
    return systemError(std::string(what) + " " + path, error);
}

}  // namespace nixl::base
