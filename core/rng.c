/* Owns randomness: Philox4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy
 * as 1, 2, 3" (SC 2011), from Random123. Counter-based: a number is a function of its place. */
#include "core/rng.h"
#include "core/core.h"
#include <Random123/philox.h>
#include <math.h>

void tp_philox(uint32_t out[4], uint64_t seed, uint32_t purpose, uint64_t a, uint64_t b) {
    philox4x32_ctr_t ctr = {{(uint32_t)b, (uint32_t)(b >> 32), (uint32_t)a, (uint32_t)(a >> 32)}};
    philox4x32_key_t key = {{(uint32_t)seed, tp_philox_key(seed, purpose)}};
    philox4x32_ctr_t r = philox4x32(ctr, key);
    for (int i = 0; i < 4; i++) out[i] = r.v[i];
}

double tp_uniform(uint64_t seed, uint32_t purpose, uint64_t a, uint64_t b) {
    uint32_t w[4];
    tp_philox(w, seed, purpose, a, b);
    uint64_t bits = ((uint64_t)w[0] << 21) ^ (w[1] >> 11);
    return ((double)bits + 0.5) * 0x1p-53;
}

double tp_normal(uint64_t seed, uint32_t purpose, uint64_t a, uint64_t b) {
    uint32_t w[4];
    tp_philox(w, seed, purpose, a, b);
    double u = ((double)(((uint64_t)w[0] << 21) ^ (w[1] >> 11)) + 0.5) * 0x1p-53;
    double v = ((double)(((uint64_t)w[2] << 21) ^ (w[3] >> 11)) + 0.5) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586476925286766559 * v);
}
