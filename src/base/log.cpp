// See log.h.
#include "base/log.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include <strings.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fork.h"

namespace nixl::base {
namespace {

constexpr const char* kNames[] = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"};
constinit std::atomic<int> level_now{-1};  // -1: the environment has not been read yet
constinit std::atomic<LogSink> sink_now{nullptr};

int levelFromEnvironment() {
    const char* text = std::getenv("NIXL_LOG_LEVEL");
    if (text == nullptr || *text == '\0') {
        return static_cast<int>(LogLevel::WARN);
    }
    for (int i = 0; i < 6; ++i) {
        if (strcasecmp(text, kNames[i]) == 0) {
            return i;
        }
    }
    if (strcasecmp(text, "WARNING") == 0) {
        return static_cast<int>(LogLevel::WARN);
    }
    std::fprintf(stderr,
                 "nixl WARN NIXL_LOG_LEVEL=\"%s\" is none of TRACE DEBUG INFO WARN ERROR FATAL\n",
                 text);
    return static_cast<int>(LogLevel::WARN);
}

}  // namespace

bool logs(LogLevel level) noexcept {
    int now = level_now.load(std::memory_order_relaxed);
    if (now < 0) {
        loadLogLevel();
        now = level_now.load(std::memory_order_relaxed);
    }
    return static_cast<int>(level) >= now;
}

void log(LogLevel level, std::string_view message) {
    if (!logs(level)) {
        return;
    }
    if (const LogSink sink = sink_now.load(std::memory_order_acquire); sink != nullptr) {
        sink(level, message);
        return;
    }
    char stamp[32];
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    {
        // It takes a lock of the C library, which a fork in the middle would leave taken.
        const MutexLock lock(processMutex(ProcessLock::CLOCK));
        localtime_r(&now, &parts);
    }
    std::strftime(stamp, sizeof(stamp), "%H:%M:%S", &parts);
    std::string line = std::string(stamp) + " nixl " + logLevelName(level) + " ";
    line.append(message).push_back('\n');
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

void setLogLevel(LogLevel level) noexcept {
    level_now.store(static_cast<int>(level), std::memory_order_relaxed);
}

void loadLogLevel() {
    level_now.store(levelFromEnvironment(), std::memory_order_relaxed);
}

void setLogSink(LogSink sink) noexcept {
    sink_now.store(sink, std::memory_order_release);
}

const char* logLevelName(LogLevel level) noexcept {
    return kNames[static_cast<int>(level)];
}

}  // namespace nixl::base
