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

/* The mask of a call: of element i of the tensor, that is, i % inner of sample + i / inner. */
typedef struct dropout_mask {
    uint32_t k0, k1, threshold;
    float scale;
    uint64_t sample; /* global number of the tensor's first */
    int64_t samples, inner;
} dropout_mask;

static inline dropout_mask dropout_mask_of(const tp_call *k) {
    const dropout_attr *a = (const dropout_attr *)k->attr;
    const tp_tensor *x = k->in[0];
    uint32_t key[4];
    dropout_mask m;
    tp_philox(key, a->seed, TP_RNG_DROPOUT, a->step, a->stream); /* the site's key */
    m.k0 = key[0];
    m.k1 = key[1] ^ TP_RNG_DROPOUT * 0x9E3779B9u; /* as tp_philox does */
    m.threshold = dropout_threshold(a->p_drop);
    m.scale = (float)(1 / (1 - a->p_drop));
    m.sample = a->sample;
    m.samples = x->ndim ? x->shape[0] : 1;
    m.inner = m.samples ? tp_numel(x) / m.samples : 1;
    return m;
}

static inline TP_HD void dropout_group(uint32_t k0, uint32_t k1, uint64_t sample, uint64_t group,
                                       uint32_t word[4]) {
    word[0] = (uint32_t)group, word[1] = (uint32_t)(group >> 32);
    word[2] = (uint32_t)sample, word[3] = (uint32_t)(sample >> 32);
    dropout_words(k0, k1, word);
}

static inline TP_HD float dropout_f(float x, uint32_t word, uint32_t threshold, float scale) {
    return word >= threshold ? x * scale : 0.0f;
}
#endif
