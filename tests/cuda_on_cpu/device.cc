/* The device that the CUDA runtime's host API tells of. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "internal.h"

/* ---- the device ----------------------------------------------------------------------------- */
static int sm_set;
extern "C" void emu_set_sm(int sm) { sm_set = sm; }
int emu_sm(void) {
    const char *e = getenv("TAPIR_EMU_SM");
    int sm = sm_set ? sm_set : e ? atoi(e) : 80;
    return sm >= 90 ? 90 : 80;
}
int emu_optin(void) { return emu_sm() == 90 ? 232448 : 166912; }
/* All alike, and only one does anything. A process has one of its own, so under an MPI launcher
 * there seem to be as many as ranks. */
static int devices_set;
extern "C" void emu_set_devices(int n) { devices_set = n; }
static int devices(void) {
    const char *told = getenv("TAPIR_EMU_DEVICES"), *ranks = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    int n = devices_set ? devices_set : told ? atoi(told) : ranks ? atoi(ranks) : 1;
    return n > 1 ? n : 1;
}
extern "C" cudaError_t cudaGetDeviceCount(int *n) { return *n = devices(), cudaSuccess; }
extern "C" cudaError_t cudaGetDevice(int *d) { return *d = 0, cudaSuccess; }
extern "C" cudaError_t cudaSetDevice(int d) {
    if (d >= 0 && d < devices()) return cudaSuccess;
    return emu_fail(cudaErrorInvalidDevice, "there is no such device");
}
extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
    if (d < 0 || d >= devices()) return emu_fail(cudaErrorInvalidDevice, "there is no such device");
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "CPU emulation");
    bool shared = getenv("TAPIR_EMU_DEVICES"); /* then they pretend to be the machine's */
    snprintf(p->uuid.bytes, sizeof p->uuid.bytes, "%d.%d", d, shared ? 0 : (int)getpid());
    size_t unused;
    cudaMemGetInfo(&unused, &p->totalGlobalMem);
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = (size_t)emu_optin();
    p->sharedMemPerMultiprocessor = (size_t)emu_optin() + 1024;
    p->major = emu_sm() / 10;
    p->multiProcessorCount = 4;
    p->warpSize = 32;
    p->maxThreadsPerBlock = MAX_THREADS;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = 65536;
    p->l2CacheSize = 40 << 20;
    p->memoryBusWidth = 5120;
    return cudaSuccess;
}
extern "C" cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int d) {
    if (d < 0 || d >= devices()) return emu_fail(cudaErrorInvalidDevice, "there is no such device");
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
        *v = MAX_THREADS;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *v = 49152;
        break;
    case cudaDevAttrWarpSize:
        *v = 32;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
        *v = 65536;
        break;
    case cudaDevAttrClockRate:
        *v = 1000000;
        break;
    case cudaDevAttrMultiProcessorCount:
        *v = 4;
        break;
    case cudaDevAttrMemoryClockRate:
        *v = 1000000;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *v = 5120;
        break;
    case cudaDevAttrL2CacheSize:
        *v = 40 << 20;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *v = 2048;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *v = emu_sm() / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *v = 0;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *v = emu_optin() + 1024;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *v = emu_optin();
        break;
    default:
        return emu_fail(cudaErrorInvalidValue, "cudaDeviceGetAttribute: not emulated");
    }
    return cudaSuccess;
}
extern "C" cudaError_t cudaDriverGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
extern "C" cudaError_t cudaRuntimeGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
extern "C" cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
