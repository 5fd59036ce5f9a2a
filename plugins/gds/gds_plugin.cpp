// Plugin GDS: its parameters and its table. Threads: none.
#include <iterator>

#include "gds_backend.h"
#include "gds_tables.h"

namespace nixl::gds {

namespace {

constexpr ParameterSpec kBatchParameters[] = {
    {"batch_pool_size", ParameterType::INTEGER, "128", "batches at a time, made when needed", 1,
     4096},
    {"batch_limit", ParameterType::INTEGER, "128", "requests of one batch", 1, 1 << 20},
    {"batch_timeout", ParameterType::DURATION, "60s",
     "a batch of which nothing ends for so long is ended, and done again by plain calls", 0, 86400},
    kMaxRequest,
    kDriverTimeout,
    kFdCache,
};

Result<std::unique_ptr<Backend>> createGds(const Parameters& parameters, PluginServices& services) {
    GdsOptions options = commonOptions(Kind::BATCHES, parameters);
    options.engine.batches = static_cast<unsigned>(parameters.integer("batch_pool_size"));
    options.engine.batchRequests = static_cast<unsigned>(parameters.integer("batch_limit"));
    options.engine.batchSeconds = parameters.seconds("batch_timeout");
    return GdsBackend::create(options, services);
}

}  // namespace

const PluginTable kGdsTable = {
    kPluginAbi,
    PluginKind::BACKEND,
    "GDS",
    nullptr,
    "1.0",
    "files and GPU or host memory by batches of cuFile (GPU Direct Storage)",
    kMemoryTypes,
    std::size(kMemoryTypes),
    kBatchParameters,
    std::size(kBatchParameters),
    &createGds,
    nullptr,
};

}  // namespace nixl::gds

NIXL_EXPORT_PLUGIN(nixl::gds::kGdsTable)
