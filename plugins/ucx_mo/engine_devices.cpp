// See engine_devices.h.
#include "engine_devices.h"

#include <algorithm>

namespace nixl::ucx_mo {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> words;
    while (!text.empty()) {
        const size_t end = std::min(text.find(separator), text.size());
        std::string_view word = text.substr(0, end);
        while (word.starts_with(' ')) {
            word.remove_prefix(1);
        }
        while (word.ends_with(' ')) {
            word.remove_suffix(1);
        }
        if (!word.empty()) {
            words.emplace_back(word);
        }
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return words;
}

std::string join(std::span<const std::string> words, const char* separator) {
    std::string text;
    for (const std::string& word : words) {
        text += (text.empty() ? "" : separator) + word;
    }
    return text;
}

// "mlx5_0:1" names a port of a device.
Status checkDevice(const std::string& device, std::span<const std::string> present) {
    const std::string name = device.substr(0, device.find(':'));
    if (std::find(present.begin(), present.end(), name) != present.end()) {
        return {};
    }
    return Status::invalidParam("UCX_MO: there is no network device \"" + device +
                                "\" here; there are: " + join(present, " "));
}

}  // namespace

Result<std::vector<std::string>> dealDevices(std::string_view list,
                                             size_t engines,
                                             std::span<const std::string> present) {
    // What excludes devices, and "all", is the library's to understand.
    const bool open = list == "all" || list.starts_with('^');
    const bool grouped = list.find(';') != std::string_view::npos;
    const std::vector<std::string> groups =
        open ? std::vector{std::string(list)} : split(list, grouped ? ';' : ',');
    if (groups.empty()) {
        return std::vector<std::string>(std::max<size_t>(engines, 1));
    }
    for (const std::string& group : groups) {
        for (const std::string& device : open ? std::vector<std::string>() : split(group, ',')) {
            NIXL_RETURN_IF_ERROR(checkDevice(device, present));
        }
    }
    std::vector<std::string> dealt(engines == 0 ? groups.size() : engines);
    for (size_t i = 0; i < std::max(groups.size(), dealt.size()); ++i) {
        std::string& engine =
            dealt[dealt.size() < groups.size() ? i * dealt.size() / groups.size() : i];
        engine += (engine.empty() ? "" : ",") + join(split(groups[i % groups.size()], ','), ",");
    }
    return dealt;
}

}  // namespace nixl::ucx_mo
