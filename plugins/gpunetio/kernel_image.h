// The code of queue_kernel.cu for GPUs (a fatbin), as the build made it; without nvcc it is empty.
#pragma once

#include <cstddef>

namespace nixl::gpunetio {

extern const char kKernelImage[];
extern const size_t kKernelImageSize;

}  // namespace nixl::gpunetio
