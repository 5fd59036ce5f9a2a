/* What the benchmarks call of libcuda.so.1 and libnvidia-ml.so.1 beyond the stand-in of the driver
 * (testing/standins/cuda_driver.c), with which this is compiled into one library.
 */
#include "../../testing/standins/cuda_driver.h"

int cuMemcpy(uint64_t to, uint64_t from, size_t size);

API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t size) {
    return cuMemcpy(to, (uint64_t)from, size);
}
API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t size) {
    return cuMemcpy((uint64_t)to, from, size);
}
API int cuCtxSynchronize(void) {
    return OK;
}

typedef struct {
    unsigned gpu, memory;
} Utilization;

API int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 1;
    return 0;
}
API int nvmlDeviceGetName(void* device, char* name, unsigned size) {
    strncpy(name, "Stand-in 9000", size);
    return device == (void*)5 ? 0 : 2;
}
API int nvmlSystemGetDriverVersion(char* version, unsigned size) {
    strncpy(version, "1.2.3", size);
    return 0;
}
API int nvmlInit_v2(void) {
    return 0;
}
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
    *device = (void*)5;
    return index == 0 ? 0 : 2;
}
API int nvmlDeviceGetUtilizationRates(void* device, Utilization* shares) {
    shares->gpu = 42;
    shares->memory = 7;
    return device == (void*)5 ? 0 : 2;
}
