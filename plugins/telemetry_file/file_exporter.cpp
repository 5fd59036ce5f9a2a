// The exporter FILE: appends what an agent counts to AGENT-PID-ID.jsonl in the telemetry directory,
// one line of JSON each interval. A file that is full becomes AGENT-PID-ID.1.jsonl, which replaces
// the one before. Calls come one at a time.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nixl/plugin.h"

namespace nixl::file {
namespace {

struct FileExporter {
    std::string stem;  // path without .jsonl
    off_t most = 0;    // bytes of one file
};

// A name of a file, whatever the agent is called.
std::string plain(std::string_view name) {
    constexpr size_t kLongest = 64;
    std::string out;
    for (const char c : name.substr(0, kLongest)) {
        const bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                          (c >= '0' && c <= '9') || c == '-' || c == '_';
        out += good ? c : '_';
    }
    return out;
}

int failed(char* error, size_t size, const char* what, const std::string& path) {
    const int code = errno;
    std::snprintf(error, size, "cannot %s %s: %s", what, path.c_str(), strerror(code));
    return 1;
}

void* create(const nixl_exporter_setup* setup, char* error, size_t error_size) {
    const char* const size = setup->parameter(setup->context, "max_size");
    Parameters parameters;
    parameters.set("max_size", size != nullptr ? size : "64M", true);
    auto made = std::make_unique<FileExporter>();
    made->stem = std::string(setup->directory) + "/" + plain(setup->agent) + "-" +
                 std::to_string(getpid()) + "-" + std::string(setup->id).substr(0, 8);
    made->most = static_cast<off_t>(parameters.size("max_size"));
    if (made->most <= 0) {
        std::snprintf(error, error_size, "max_size must be more than 0");
        return nullptr;
    }
    return made.release();
}

int publish(void* self, const nixl_metrics* metrics, char* error, size_t error_size) {
    const auto& exporter = *static_cast<const FileExporter*>(self);
    const std::string path = exporter.stem + ".jsonl";
    const std::string line = std::string(metrics->json) + "\n";
    struct stat facts {};
    if (stat(path.c_str(), &facts) == 0 && facts.st_size > 0 &&
        facts.st_size + static_cast<off_t>(line.size()) > exporter.most) {
        rename(path.c_str(), (exporter.stem + ".1.jsonl").c_str());
    }
    const int file =
        open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0) {
        return failed(error, error_size, "open", path);
    }
    const ssize_t written = write(file, line.data(), line.size());
    if (written != static_cast<ssize_t>(line.size())) {
        if (written >= 0) {
            errno = ENOSPC;
        }
        const int result = failed(error, error_size, "write", path);
        close(file);
        return result;
    }
    close(file);
    return 0;
}

void destroy(void* self) {
    delete static_cast<FileExporter*>(self);
}

constexpr nixl_exporter kExporter{NIXL_EXPORTER_ABI, &create, &publish, nullptr, &destroy};

constexpr ParameterSpec kParameters[] = {
    {"max_size", ParameterType::SIZE, "64M", "bytes of a file; one more is kept", 1},
};

constexpr PluginTable kTable{
    kPluginAbi,  PluginKind::TELEMETRY_EXPORTER,
    "FILE",      nullptr,
    "1",         "appends what an agent counts to a file, as lines of JSON",
    nullptr,     0,
    kParameters, std::size(kParameters),
    nullptr,     &kExporter,
};

}  // namespace
}  // namespace nixl::file

NIXL_EXPORT_PLUGIN(nixl::file::kTable)
