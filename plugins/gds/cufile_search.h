// Finding libcufile without opening its driver; between cufile.cpp and cufile_driver.cpp.
// Threads: any.
#pragma once

#include <memory>

#include "cufile.h"

namespace nixl::gds {

// In this order: NIXL_CUFILE_LIBRARY; what the process has loaded; the PyPI package beside the one
// this plugin is in; the CUDA toolkit; the system. NOT_FOUND names every place tried.
Result<std::unique_ptr<CuFile>> findCuFile();

}  // namespace nixl::gds
