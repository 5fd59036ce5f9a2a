// Reading the list of devices; see config.h.
#include "config.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>

#include "posix/engine.h"

namespace nixl::gusli {

namespace {

constexpr size_t kMaxConfig = 1 << 20;
constexpr size_t kMaxId = 16;
constexpr const char* kGrammar =
    "a line is: ID, kind (F file, K kernel block device, N network), access (W read and write, "
    "R read only, X exclusive), N or D, path, sec=COOKIE";

std::vector<std::string_view> words(std::string_view line) {
    std::vector<std::string_view> found;
    constexpr std::string_view kBlank = " \t\r\v\f";
    for (size_t at = line.find_first_not_of(kBlank); at != std::string_view::npos;) {
        const size_t end = std::min(line.find_first_of(kBlank, at), line.size());
        found.push_back(line.substr(at, end - at));
        at = line.find_first_not_of(kBlank, end);
    }
    return found;
}

std::optional<uint64_t> numberOf(std::string_view text) {
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() ? std::optional(value)
                                                                    : std::nullopt;
}

bool isId(std::string_view text) {
    return text.size() <= kMaxId && std::all_of(text.begin(), text.end(), [](char letter) {
               return (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') ||
                      (letter >= 'A' && letter <= 'Z') || letter == '-' || letter == '_';
           });
}

bool sameId(std::string_view one, std::string_view other) {
    const auto number = numberOf(one);
    return one == other || (number && number == numberOf(other));
}

// What is wrong with a line; empty where it is a device.
std::string parseDevice(const std::vector<std::string_view>& fields, DeviceConfig& device) {
    if (fields.size() < 5 || fields.size() > 6) {
        return "has " + std::to_string(fields.size()) + " words; " + kGrammar;
    }
    const auto one = [](std::string_view field, std::string_view letters) {
        return field.size() == 1 && letters.find(field[0]) != std::string_view::npos;
    };
    const auto quoted = [](std::string_view field) { return "\"" + std::string(field) + "\""; };
    if (!isId(fields[0])) {
        return "the id " + quoted(fields[0]) + " is no number and not 1 to 16 letters or digits";
    }
    if (!one(fields[1], "FKNfkn")) {
        return "the kind " + quoted(fields[1]) + " is none of F, K, N; " + kGrammar;
    }
    if (!one(fields[2], "WRXDwrxd")) {
        return "the access " + quoted(fields[2]) + " is none of W, R, X, D; " + kGrammar;
    }
    if (!one(fields[3], "NYDnyd")) {
        return "the fourth word " + quoted(fields[3]) + " is none of N, Y, D; " + kGrammar;
    }
    if (fields.size() == 6 && !fields[5].starts_with("sec=")) {
        return "the last word " + quoted(fields[5]) + " does not begin with sec=";
    }
    const auto upper = [](char letter) {
        return static_cast<char>(letter >= 'a' ? letter - 'a' + 'A' : letter);
    };
    device.id = fields[0];
    device.kind = static_cast<Kind>(upper(fields[1][0]));
    const char access = upper(fields[2][0]);
    device.access = access == 'D' ? Access::SHARED : static_cast<Access>(access);
    device.direct = upper(fields[3][0]) == 'D';
    device.path = fields[4];
    device.security = fields.size() == 6 ? fields[5] : "";
    return {};
}

// The number of "version=1"; 0 where the line says none.
unsigned versionOf(std::string_view line) {
    const size_t at = line.find("version=");
    unsigned version = 0;
    if (at != std::string_view::npos) {
        const std::string_view digits = line.substr(at + 8);
        std::from_chars(digits.data(), digits.data() + digits.size(), version);
    }
    return version;
}

Result<std::string> readWhole(const std::string& path) {
    const auto close = [](FILE* file) { fclose(file); };
    std::string text(kMaxConfig + 1, '\0');
    errno = 0;
    const std::unique_ptr<FILE, decltype(close)> file(fopen(path.c_str(), "re"), close);
    const size_t size = file == nullptr ? 0 : fread(text.data(), 1, text.size(), file.get());
    if (file == nullptr || ferror(file.get()) != 0) {
        const int error = errno;
        return Status(error == ENOENT ? ErrorCode::NOT_FOUND : ErrorCode::INVALID_PARAM,
                      "GUSLI: config_file \"" + path + "\": " + posix::errnoText(error), error);
    }
    if (size > kMaxConfig) {
        return Status::invalidParam("GUSLI: config_file \"" + path + "\" is longer than 1 MiB");
    }
    text.resize(size);
    return text;
}

}  // namespace

Result<std::vector<DeviceConfig>> parseConfig(std::string_view text, const std::string& name) {
    const auto wrong = [&name](size_t line, const std::string& why) {
        return Status::invalidParam("GUSLI: " + name + " line " + std::to_string(line) + ": " +
                                    why);
    };
    std::vector<DeviceConfig> devices;
    unsigned version = 0;
    size_t number = 0;
    while (!text.empty()) {
        const size_t end = std::min(text.find('\n'), text.size());
        const std::string_view line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        ++number;
        const std::vector<std::string_view> fields = words(line);
        if (fields.empty()) {
            continue;
        }
        if (fields[0].starts_with("version=") || (version == 0 && fields[0][0] == '#')) {
            const unsigned said = versionOf(line);
            if (said > 1 || (said == 0 && fields[0][0] != '#')) {
                return wrong(number, "\"" + std::string(line) + "\": only version=1 is known");
            }
            version = said;
            continue;
        }
        if (fields[0][0] == '#') {
            continue;
        }
        if (version == 0) {
            return wrong(number, "a line \"version=1\" has to come before the first device");
        }
        DeviceConfig device;
        device.line = number;
        if (const std::string why = parseDevice(fields, device); !why.empty()) {
            return wrong(number, why);
        }
        for (const DeviceConfig& other : devices) {
            if (sameId(other.id, device.id)) {
                return wrong(number, "the id " + device.id + " is that of line " +
                                         std::to_string(other.line) + " too");
            }
        }
        devices.push_back(std::move(device));
    }
    if (devices.empty()) {
        return Status::invalidParam("GUSLI: " + name + " has no device; " + kGrammar);
    }
    return devices;
}

Result<std::vector<DeviceConfig>> readConfig(const std::string& text) {
    if (text.empty()) {
        return Status::invalidParam(
            "GUSLI: config_file is missing: the path of a list of devices, or the list itself "
            "(\"version=1\\n11 K W N /dev/nvme0n1 sec=0x3\")");
    }
    if (text.find('\n') != std::string::npos || text[0] == '#' || text.starts_with("version=")) {
        return parseConfig(text, "config_file");
    }
    Result<std::string> read = readWhole(text);
    if (!read.ok()) {
        return read.status();
    }
    return parseConfig(read.value(), "config_file \"" + text + "\"");
}

const DeviceConfig* findDevice(const std::vector<DeviceConfig>& devices,
                               uint64_t number,
                               std::string_view metadata) {
    const DeviceConfig* found = nullptr;
    const std::string text = std::to_string(number);
    for (const DeviceConfig& device : devices) {
        if (!metadata.empty() && device.id == metadata) {
            return &device;
        }
        if (sameId(device.id, text)) {
            found = &device;
        }
    }
    return found;
}

std::string deviceIds(const std::vector<DeviceConfig>& devices) {
    std::string all;
    for (const DeviceConfig& device : devices) {
        all += (all.empty() ? "" : ", ") + device.id;
    }
    return all;
}

}  // namespace nixl::gusli
