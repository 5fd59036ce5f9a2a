// The log: one line per message on standard error, or a sink (Python's logger). Thread-safe;
// quiet by default: NIXL_LOG_LEVEL (TRACE DEBUG INFO WARN ERROR FATAL), default WARN.
#pragma once

#include <string_view>

#include "nixl/services.h"

namespace nixl::base {

bool logs(LogLevel level) noexcept;
void log(LogLevel level, std::string_view message);
void setLogLevel(LogLevel level) noexcept;
// Reads NIXL_LOG_LEVEL again; an unknown value is one warning.
void loadLogLevel();
// Null: standard error. The sink may be called from any thread, also from those of the core.
using LogSink = void (*)(LogLevel level, std::string_view message);
void setLogSink(LogSink sink) noexcept;
const char* logLevelName(LogLevel level) noexcept;

}  // namespace nixl::base
