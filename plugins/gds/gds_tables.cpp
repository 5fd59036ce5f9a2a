// Names, parameters and memory types; see gds_tables.h.
#include "gds_tables.h"

#include <iterator>

#include "gds_backend.h"

namespace nixl::gds {

namespace {

constexpr ParameterSpec kMaxRequest = {"max_request_size",
                                       ParameterType::SIZE,
                                       "16777216",
                                       "bytes of one request to cuFile; longer pieces are cut",
                                       4096,
                                       1LL << 30};
constexpr ParameterSpec kDriverTimeout = {
    "driver_timeout",
    ParameterType::DURATION,
    "60s",
    "how long the first backend of a process waits for cuFile's driver to open",
    0,
    86400};
constexpr ParameterSpec kFdCache = {
    "fd_cache_size",
    ParameterType::INTEGER,
    "0",
    "descriptors of files by path that stay open; 0: a quarter of the limit, 16 to 4096",
    0,
    1 << 24};

constexpr ParameterSpec kBatchParameters[] = {
    {"batch_pool_size", ParameterType::INTEGER, "128", "batches at a time, made when needed", 1,
     4096},
    {"batch_limit", ParameterType::INTEGER, "128", "requests of one batch", 1, 1 << 20},
    kMaxRequest,
    kDriverTimeout,
    kFdCache,
};

constexpr ParameterSpec kThreadParameters[] = {
    {"thread_count", ParameterType::INTEGER, "4", "threads", 1, 1024},
    kMaxRequest,
    kDriverTimeout,
    kFdCache,
};

constexpr MemType kMemoryTypes[] = {MemType::DRAM, MemType::VRAM, MemType::FILE};

Result<std::unique_ptr<Backend>> createGds(const Parameters& parameters, PluginServices& services) {
    return GdsBackend::create(Kind::BATCHES, parameters, services);
}

Result<std::unique_ptr<Backend>> createGdsMt(const Parameters& parameters,
                                             PluginServices& services) {
    return GdsBackend::create(Kind::THREADS, parameters, services);
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
