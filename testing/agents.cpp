// See agents.h.
#include "testing/agents.h"

#include "backend/plugins.h"
#include "testing/memory_backend.h"
#include "testing/object_backend.h"

namespace nixl::testkit {
namespace {

AgentConfig configOf(const PluginTable& table, const BackendParams& params) {
    for (const PluginTable* one : {&memoryBackendTable(), &objectBackendTable()}) {
        const Status added = backend::PluginRegistry::instance().add(*one);
        EXPECT_TRUE(added.ok()) << added.message();
    }
    AgentConfig config;
    config.backends = {table.name};
    config.backendParams[table.name] = params;
    return config;
}

}  // namespace

AgentConfig memoryConfig(const BackendParams& params) {
    return configOf(memoryBackendTable(), params);
}

AgentConfig objectsConfig(const BackendParams& params) {
    return configOf(objectBackendTable(), params);
}

}  // namespace nixl::testkit
