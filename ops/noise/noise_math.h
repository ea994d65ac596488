/* noise's numbers, once. */
#ifndef TP_NOISE_MATH_H
#define TP_NOISE_MATH_H
#include "core/core.h"
#include "ops/math.h"
#include "ops/philox_math.h"

typedef struct noise_attr {
    uint64_t seed, step, sample;
    uint32_t stream;
    bool everywhere; /* every row is sample 0 of step 0 */
} noise_attr;
typedef struct noise_key {
    uint32_t k0, k1;
    uint64_t sample;
    bool everywhere;
} noise_key;

static inline noise_key noise_key_of(const noise_attr *a) {
    uint32_t key[4]; /* a key of its own for every stream and step */
    tp_philox(key, a->seed, TP_RNG_ROUTE, a->everywhere ? 0 : a->step, a->stream);
    noise_key n = {key[0], key[1], a->everywhere ? 0 : a->sample, a->everywhere};
    return n;
}

/* The middle of one of 2^23 intervals: never 0 or 1. */
static inline TP_HD float noise_f(const noise_key *n, int64_t row, int32_t place) {
    uint64_t sample = n->everywhere ? 0 : n->sample + (uint64_t)row;
    uint32_t word[4] = {(uint32_t)place, 0, (uint32_t)sample, (uint32_t)(sample >> 32)};
    tp_philox_rounds(n->k0, n->k1, word);
    return ((float)(word[0] >> 9) + 0.5f) * 0x1p-23f;
}
#endif
