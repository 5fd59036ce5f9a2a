// See static_plugins.h. The build writes nixl/static_plugins.inc: NIXL_STATIC_PLUGIN(name) for each
// plugin in the library, where `name` is the ending that NIXL_EXPORT_PLUGIN gave its function.
#include "backend/static_plugins.h"

#if __has_include("nixl/static_plugins.inc")
#define NIXL_STATIC_PLUGIN(name) extern "C" const ::nixl::PluginTable* nixlPluginTable_##name();
#include "nixl/static_plugins.inc"
#undef NIXL_STATIC_PLUGIN
#endif

namespace nixl::backend {

std::vector<const PluginTable*> staticPlugins() {
    std::vector<const PluginTable*> tables;
#if __has_include("nixl/static_plugins.inc")
#define NIXL_STATIC_PLUGIN(name) tables.push_back(nixlPluginTable_##name());
#include "nixl/static_plugins.inc"
#undef NIXL_STATIC_PLUGIN
#endif
    return tables;
}

}  // namespace nixl::backend
