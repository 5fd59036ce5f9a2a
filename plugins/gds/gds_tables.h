// The tables of the two plugins, which share all code. Threads: none.
#pragma once

#include "nixl/plugin.h"

namespace nixl::gds {

extern const PluginTable kGdsTable;
extern const PluginTable kGdsMtTable;

}  // namespace nixl::gds
