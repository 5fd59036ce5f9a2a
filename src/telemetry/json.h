// What an agent has counted, as one line of JSON: agent.stats(), files for `nixl top`, exporters.
#pragma once

#include <string>

#include "nixl/telemetry.h"

namespace nixl::telemetry {

std::string toJson(const AgentTelemetry& telemetry);

}  // namespace nixl::telemetry
