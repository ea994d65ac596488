/* philox_cuda: core's tp_philox in a kernel, the same words. Random123's header throws in C++, so
 * the rounds stand here: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3"
 * (SC 2011), Philox4x32-10. */
#ifndef TP_PHILOX_CUDA_H
#define TP_PHILOX_CUDA_H
#include "core/rng.h"
#include "ops/cuda.h"

/* key1: tp_philox_key(seed, purpose) */
static __device__ __forceinline__ void tp_philox_cuda(uint32_t out[4], uint64_t seed, uint32_t key1,
                                                      uint64_t a, uint64_t b) {
    uint32_t c0 = (uint32_t)b, c1 = (uint32_t)(b >> 32), c2 = (uint32_t)a, c3 = (uint32_t)(a >> 32);
    uint32_t key0 = (uint32_t)seed;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)p0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}
#endif
