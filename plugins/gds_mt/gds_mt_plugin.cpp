// Plugin GDS_MT: its parameters and its table. Threads: none.
#include <iterator>

#include "gds_backend.h"
#include "gds_tables.h"

namespace nixl::gds {

namespace {

constexpr ParameterSpec kThreadParameters[] = {
    {"thread_count", ParameterType::INTEGER, "4", "threads", 1, 1024},
    kMaxRequest,
    kDriverTimeout,
    kFdCache,
};

Result<std::unique_ptr<Backend>> createGdsMt(const Parameters& parameters,
                                             PluginServices& services) {
    GdsOptions options = commonOptions(Kind::THREADS, parameters);
    options.engine.threads = static_cast<unsigned>(parameters.integer("thread_count"));
    return GdsBackend::create(options, services);
}

}  // namespace

const PluginTable kGdsMtTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "GDS_MT",
    nullptr,
    "1.0",
    "files and GPU or host memory by threads of cuFile (GPU Direct Storage)",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kThreadParameters,
    std::size(kThreadParameters),
    &createGdsMt,
    nullptr,
};

}  // namespace nixl::gds

NIXL_EXPORT_PLUGIN(nixl::gds::kGdsMtTable)
