// FaultPlan as text; see wrappers.h.
#include <cmath>
#include <string>

#include "backend/names.h"
#include "backend/plugins.h"
#include "backend/wrappers.h"

namespace nixl::backend {
namespace {

constexpr int64_t kMost = UINT32_MAX;

// The keys as a parameter table, so that the messages are the same everywhere.
const ParameterSpec kKeys[] = {
    {"seed", ParameterType::INTEGER, "0", "where counting starts; 0: drawn", 0},
    {"refuse", ParameterType::INTEGER, "0", "every n-th call returns an error", 0, kMost},
    {"fail", ParameterType::INTEGER, "0", "every n-th post ends FAILED", 0, kMost},
    {"short", ParameterType::INTEGER, "0", "every n-th post moves a part", 0, kMost},
    {"delay", ParameterType::INTEGER, "0", "every n-th post ends late", 0, kMost},
    {"duplicate", ParameterType::INTEGER, "0", "every n-th post ends twice", 0, kMost},
    {"delay_time", ParameterType::DURATION, "10ms", "the longest delay", 0, 60},
};

}  // namespace

std::string FaultPlan::text() const {
    std::string out = "seed=" + std::to_string(seed);
    const auto add = [&out](const char* name, uint32_t every) {
        if (every != 0) {
            out.append(",").append(name).append("=").append(std::to_string(every));
        }
    };
    add("refuse", refuse);
    add("fail", fail);
    add("short", shorten);
    add("delay", delay);
    add("duplicate", duplicate);
    return delay == 0 && duplicate == 0
               ? out
               : out + ",delay_time=" + std::to_string(delayTime.count()) + "us";
}

Result<FaultPlan> FaultPlan::parse(std::string_view text) {
    PluginTable table{};
    table.name = "fault plan";
    table.parameters = kKeys;
    table.parameterCount = std::size(kKeys);
    std::map<std::string, std::string> given;
    for (std::string_view rest = text; !rest.empty();) {
        const std::string_view item = rest.substr(0, rest.find(','));
        rest.remove_prefix(std::min(item.size() + 1, rest.size()));
        const size_t equals = item.find('=');
        if (equals == std::string_view::npos) {
            return Status::invalidParam("fault plan \"" + std::string(text) + "\": \"" +
                                        std::string(item) + "\" is not key=value");
        }
        given[std::string(item.substr(0, equals))] = item.substr(equals + 1);
    }
    std::string unknown;
    Result<Parameters> read = validateParameters(
        table, given, [&unknown](std::string warning) { unknown = std::move(warning); });
    if (!read.ok() || !unknown.empty()) {
        return Status::invalidParam("fault plan \"" + std::string(text) +
                                    "\": " + (read.ok() ? unknown : read.status().message()));
    }
    const Parameters& values = read.value();
    const auto every = [&values](const char* key) {
        return static_cast<uint32_t>(values.integer(key));
    };
    FaultPlan plan;
    plan.seed = static_cast<uint64_t>(values.integer("seed"));
    plan.refuse = every("refuse");
    plan.fail = every("fail");
    plan.shorten = every("short");
    plan.delay = every("delay");
    plan.duplicate = every("duplicate");
    plan.delayTime = std::chrono::microseconds(std::llround(values.seconds("delay_time") * 1e6));
    return plan;
}

}  // namespace nixl::backend
