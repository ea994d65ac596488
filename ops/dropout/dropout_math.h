/* dropout's mask, once: dropout_cpu.c and dropout.cu both call it. */
#ifndef TP_DROPOUT_MATH_H
#define TP_DROPOUT_MATH_H
#include "ops/math.h"

typedef struct dropout_attr {
    double p_drop;
    uint64_t seed, step, sample;
    uint32_t stream;
} dropout_attr;

/* Elements are kept whose random word is not below this. */
static inline TP_HD uint32_t dropout_threshold(double p_drop) {
    return (uint32_t)(p_drop * 0x1p32);
}

/* Philox4x32-10 (core/rng.c) with key (k0,k1) and counter (c0,c1,c2,c3); the words replace it. Word
 * i of counter (group, sample) belongs to element 4*group + i of the sample. */
static inline TP_HD void dropout_words(uint32_t k0, uint32_t k1, uint32_t c[4]) {
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

static inline TP_HD float dropout_f(float x, uint32_t word, uint32_t threshold, float scale) {
    return word >= threshold ? x * scale : 0.0f;
}
#endif
