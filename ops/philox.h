/* philox: thirty-two neighbouring counters of core's tp_philox at once, for kernels in *_cpu.c
 * files.
 *
 * r[32*w + l] is word w of tp_philox(seed, purpose, a, b + l); b is a multiple of 32, so that the
 * lanes differ in the lowest word only. Integer arithmetic: the same words on every instruction
 * set. A lane holds a 32-bit word in 64 bits, whose upper half the multiplication passes over; even
 * counters lie in one vector and odd ones in another, so that the words of both interleave with a
 * shift. */
#ifndef TP_PHILOX_H
#define TP_PHILOX_H
#include "core/rng.h"
#include "ops/op.h"
#include <Random123/philox.h> /* the constants */

enum { PHILOX_ROUNDS = 10, PHILOX_COUNTERS = 32, PHILOX_WORDS = 4 * PHILOX_COUNTERS };

#if TP_ISA >= 3
#include <immintrin.h>
#if TP_ISA >= 4
typedef __m512i philox_v;
enum { PHILOX_LANES = 8 };
static inline philox_v philox_set(uint32_t x) { return _mm512_set1_epi64(x); }
static inline philox_v philox_mul(philox_v a, philox_v b) { return _mm512_mul_epu32(a, b); }
static inline philox_v philox_xor3(philox_v a, philox_v b, philox_v c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
static inline philox_v philox_high(philox_v a) { return _mm512_srli_epi64(a, 32); }
static inline philox_v philox_count(uint32_t b) { /* b, b+2, b+4, … */
    return _mm512_add_epi64(_mm512_set1_epi64(b), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
}
static inline void philox_put(uint32_t *r, philox_v even, philox_v odd) {
    _mm512_storeu_si512(r, _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32)));
}
#else
typedef __m256i philox_v;
enum { PHILOX_LANES = 4 };
static inline philox_v philox_set(uint32_t x) { return _mm256_set1_epi64x(x); }
static inline philox_v philox_mul(philox_v a, philox_v b) { return _mm256_mul_epu32(a, b); }
static inline philox_v philox_xor3(philox_v a, philox_v b, philox_v c) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
static inline philox_v philox_high(philox_v a) { return _mm256_srli_epi64(a, 32); }
static inline philox_v philox_count(uint32_t b) {
    return _mm256_add_epi64(_mm256_set1_epi64x(b), _mm256_setr_epi64x(0, 2, 4, 6));
}
static inline void philox_put(uint32_t *r, philox_v even, philox_v odd) {
    _mm256_storeu_si256((__m256i *)r, _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa));
}
#endif

static inline void philox_words(uint32_t r[PHILOX_WORDS], uint64_t seed, uint32_t purpose,
                                uint64_t a, uint64_t b) {
    /* Four vectors at a time, two of even and two of odd counters: enough independent chains to
     * hide a multiplication's latency, few enough for the registers. */
    for (int first = 0; first < PHILOX_COUNTERS; first += 4 * PHILOX_LANES) {
        philox_v c[4][4], m0 = philox_set(PHILOX_M4x32_0), m1 = philox_set(PHILOX_M4x32_1);
        uint32_t k0 = (uint32_t)seed, k1 = tp_philox_key(seed, purpose);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            c[0][i] =
                philox_count((uint32_t)b + (uint32_t)(first + i / 2 * 2 * PHILOX_LANES + i % 2));
            c[1][i] = philox_set((uint32_t)(b >> 32));
            c[2][i] = philox_set((uint32_t)a);
            c[3][i] = philox_set((uint32_t)(a >> 32));
        }
#pragma GCC unroll 10
        for (int round = 0; round < PHILOX_ROUNDS;
             round++, k0 += PHILOX_W32_0, k1 += PHILOX_W32_1) {
            philox_v key0 = philox_set(k0), key1 = philox_set(k1);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                philox_v p0 = philox_mul(c[0][i], m0), p1 = philox_mul(c[2][i], m1);
                c[0][i] = philox_xor3(philox_high(p1), c[1][i], key0);
                c[1][i] = p1;
                c[2][i] = philox_xor3(philox_high(p0), c[3][i], key1);
                c[3][i] = p0;
            }
        }
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++)
#pragma GCC unroll 2
            for (int i = 0; i < 4; i += 2)
                philox_put(r + PHILOX_COUNTERS * w + first + i * PHILOX_LANES, c[w][i],
                           c[w][i + 1]);
    }
}
#else
static inline void philox_words(uint32_t r[PHILOX_WORDS], uint64_t seed, uint32_t purpose,
                                uint64_t a, uint64_t b) {
    enum { N = PHILOX_COUNTERS };
    uint32_t k0 = (uint32_t)seed, k1 = tp_philox_key(seed, purpose);
    for (int l = 0; l < N; l++) {
        r[l] = (uint32_t)b + (uint32_t)l;
        r[N + l] = (uint32_t)(b >> 32);
        r[2 * N + l] = (uint32_t)a;
        r[3 * N + l] = (uint32_t)(a >> 32);
    }
    for (int round = 0; round < PHILOX_ROUNDS; round++, k0 += PHILOX_W32_0, k1 += PHILOX_W32_1)
        for (int l = 0; l < N; l++) {
            uint64_t p0 = (uint64_t)PHILOX_M4x32_0 * r[l];
            uint64_t p1 = (uint64_t)PHILOX_M4x32_1 * r[2 * N + l];
            r[l] = (uint32_t)(p1 >> 32) ^ r[N + l] ^ k0;
            r[N + l] = (uint32_t)p1;
            r[2 * N + l] = (uint32_t)(p0 >> 32) ^ r[3 * N + l] ^ k1;
            r[3 * N + l] = (uint32_t)p0;
        }
}
#endif
#endif
