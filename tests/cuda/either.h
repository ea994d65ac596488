/* Tests that launch kernels of their own, either on the CPU (tests/cuda_on_cpu) or, compiled by
 * nvcc, on a GPU: launching, schedules, and whether all went well. */
#ifndef TP_TESTS_EITHER_H
#define TP_TESTS_EITHER_H
#include "core/cuda.h"
#include <stdio.h>

#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
/* Faults are reported; a GPU would hang, or not tell. Of nvcc's code not all are (ptx_run.cc). */
#define EITHER_TELLS (!emu_ptx_wanted())
/* EITHER_LAUNCH((kernel<1, 2>), grid, block, shared_bytes, arguments…) */
#define EITHER_LAUNCH(kernel, grid, block, shared_bytes, ...)                                      \
    do {                                                                                           \
        cudaFuncSetAttribute((const void *)(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,  \
                             (int)(shared_bytes));                                                 \
        emu_launch_call(#kernel, kernel, (grid), (block), (shared_bytes), nullptr, __VA_ARGS__);   \
    } while (0)
static char either_said[600] = "";
/* The launch is over, and nothing was reported. */
static inline bool either_fine(void) {
    bool fine = !emu_error_count();
    cudaGetLastError();
    if (!fine) snprintf(either_said, sizeof either_said, "%s", emu_last_error());
    emu_clear_error();
    return fine;
}
/* The order of threads, and when deferred work is done. */
static inline void either_schedule(const char *order, const char *async) {
    emu_set_order(order);
    emu_set_async(async);
}
static inline const char *either_report(void) { return either_said; }
static inline void either_pretend_sm(int sm) { emu_set_sm(sm); }
static inline bool either_is_hopper(void) { return emu_set_sm(90), true; }
#else
#define EITHER_TELLS 0
#define EITHER_LAUNCH(kernel, grid, block, shared_bytes, ...)                                      \
    do {                                                                                           \
        cudaFuncSetAttribute((const void *)(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,  \
                             (int)(shared_bytes));                                                 \
        kernel<<<(grid), (block), (shared_bytes)>>>(__VA_ARGS__);                                  \
    } while (0)
static const char *either_said = "";
static inline const char *either_report(void) { return either_said; }
static inline bool either_fine(void) {
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) e = cudaDeviceSynchronize();
    either_said = cudaGetErrorString(e);
    return e == cudaSuccess;
}
static inline void either_schedule(const char *order, const char *async) {
    (void)order;
    (void)async;
}
static inline void either_pretend_sm(int sm) { (void)sm; }
static inline bool either_is_hopper(void) {
    int major = 0;
    return !cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) && major == 9;
}
#endif
#endif
