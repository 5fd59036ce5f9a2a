// The plugins linked into the library itself (the build's NIXL_STATIC_PLUGINS). Any thread.
#pragma once

#include <vector>

#include "nixl/plugin.h"

namespace nixl::backend {

std::vector<const PluginTable*> staticPlugins();

}  // namespace nixl::backend
