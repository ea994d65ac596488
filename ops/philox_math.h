/* The rounds of Philox4x32-10 (core/rng.h) as plain arithmetic, for kernels of CPU and CUDA:
 * Random123's header cannot be used in C++ without exceptions. Salmon, Moraes, Dror, Shaw,
 * "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). */
#ifndef TP_PHILOX_MATH_H
#define TP_PHILOX_MATH_H
#include "ops/op.h"

/* Key (k0,k1) and counter (c0,c1,c2,c3); the words replace the counter. tp_philox(seed, purpose, a,
 * b) has the key (lower half of seed, tp_philox_key(seed, purpose)) and the counter (b, a), lower
 * halves first. */
static inline TP_HD void tp_philox_rounds(uint32_t k0, uint32_t k1, uint32_t c[4]) {
    uint32_t c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p = (uint64_t)c0 * 0xD2511F53u, q = (uint64_t)c2 * 0xCD9E8D57u;
        uint32_t a = (uint32_t)(q >> 32) ^ c1 ^ k0, b = (uint32_t)(p >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)q;
        c3 = (uint32_t)p;
        c0 = a;
        c2 = b;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3;
}
#endif
