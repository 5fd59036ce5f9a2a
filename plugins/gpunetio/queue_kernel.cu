// The kernel of queue_kernel.h for GPUs. Not linked: its code is put into the plugin as it is, and
// loaded by the CUDA driver.
#define GPUNETIO_DEVICE __device__

template <typename T>
__device__ inline T* gpunetioAt(unsigned long long address) {
    return reinterpret_cast<T*>(address);
}
__device__ inline unsigned gpunetioThread() {
    return threadIdx.x;
}
__device__ inline unsigned gpunetioThreads() {
    return blockDim.x;
}
__device__ inline void gpunetioBarrier() {
    __syncthreads();
}
__device__ inline void gpunetioFence() {
    __threadfence_system();
}

#include "queue_kernel.h"

extern "C" __global__ void nixlGpunetioMove(nixl::gpunetio::Job* job) {
    __shared__ uint64_t shared[2];
    nixl::gpunetio::move(job, shared);
}
