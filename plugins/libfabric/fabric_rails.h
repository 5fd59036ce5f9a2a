// Which providers and devices there are, and which of them an agent uses. Threads: any.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fabric_library.h"

namespace nixl::fabric {

using InfoPtr = std::shared_ptr<fi_info>;

struct RailOptions {
    std::string provider;              // empty: the best there is
    std::vector<std::string> devices;  // domain names; empty: by distance
    unsigned rails = 0;                // 0: all devices asked for, all EFA devices, else one
};

// The devices to use, nearest first. An error names what is missing and what there is.
Result<std::vector<InfoPtr>> chooseRails(const FabricLibrary& library, const RailOptions& options);

// How far a device is from the processor this runs on, as the system tells (10: the same node).
int distanceOf(const fi_info& info);

std::vector<std::string> splitList(const std::string& text);

}  // namespace nixl::fabric
