// The tables of the two plugins, which share all other code. Threads: none.
#pragma once

#include "nixl/plugin.h"

namespace nixl::gds {

extern const PluginTable kGdsTable;    // gds_plugin.cpp
extern const PluginTable kGdsMtTable;  // plugins/gds_mt/gds_mt_plugin.cpp

// What both take.
inline constexpr ParameterSpec kMaxRequest = {
    "max_request_size",
    ParameterType::SIZE,
    "16777216",
    "bytes of one request to cuFile; longer pieces are cut",
    4096,
    1LL << 30};
inline constexpr ParameterSpec kDriverTimeout = {
    "driver_timeout",
    ParameterType::DURATION,
    "60s",
    "how long the first backend of a process waits for cuFile's driver to open",
    0,
    86400};
inline constexpr ParameterSpec kFdCache = {
    "fd_cache_size",
    ParameterType::INTEGER,
    "0",
    "descriptors of files by path that stay open; 0: a quarter of the limit, 16 to 4096",
    0,
    1 << 24};
inline constexpr MemType kMemoryTypes[] = {MemType::DRAM, MemType::VRAM, MemType::FILE};

}  // namespace nixl::gds
