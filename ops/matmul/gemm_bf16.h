/* gemm_bf16: the vocabulary of products whose operands are rounded to bf16 (gemm.h, `bf16`).
 *
 * The arithmetic is that of AVX512_BF16's vdpbf16ps: two fused multiply-adds, the odd step first,
 * each rounded once, denormals taken and given as zeros. (Compared on a Zen 5 with two fmaf for
 * 192 million triples: no bit differs.) Where the instruction is missing two FMAs do the same, with
 * the processor told to treat denormals likewise; `dot` says which of the two is compiled. */
#ifndef TP_GEMM_BF16_H
#define TP_GEMM_BF16_H
#include "ops/simd.h"

/* An operand's bits, rounded, in the upper half of the word: denormals are zeros before. */
static inline uint32_t bf16_word(uint32_t x) {
    return tp_bf16_word(x & 0x7f800000u ? x : x & 0x80000000u);
}

static inline float bf16_round(float f) {
    uint32_t x;
    memcpy(&x, &f, sizeof x);
    x = bf16_word(x);
    memcpy(&f, &x, sizeof f);
    return f;
}

static inline v16 v16_round_bf16(v16 a) {
    uint32_t x[TP_LANES];
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < TP_LANES; i++) x[i] = bf16_word(x[i]);
    memcpy(&a, x, sizeof a);
    return a;
}

/* Lane i: even[i] in the lower half, odd[i] in the upper: a step and the one after it. */
static inline v16 v16_pairs(const bool dot, v16 even, v16 odd) {
#if TP_ISA >= 4
    if (dot) {
        __m512i both; /* even's sixteen, then odd's */
        __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(even), "v"(odd));
        const __m512i half =
            _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                             22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return _mm512_castsi512_ps(_mm512_permutexvar_epi16(half, both));
    }
#endif
    (void)dot;
    uint32_t x[TP_LANES], y[TP_LANES];
    memcpy(x, &even, sizeof x);
    memcpy(y, &odd, sizeof y);
    for (int i = 0; i < TP_LANES; i++) x[i] = bf16_word(x[i]) >> 16 | bf16_word(y[i]);
    memcpy(&even, x, sizeof even);
    return even;
}

/* The same of steps that lie side by side: thirty-two of them, in a and b. */
static inline v16 v16_pairs_along(const bool dot, v16 a, v16 b) {
#if TP_ISA >= 4
    if (dot) {
        __m512i both;
        __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(a), "v"(b));
        return _mm512_castsi512_ps(both);
    }
#endif
    (void)dot;
    uint32_t x[2 * TP_LANES];
    memcpy(x, &a, sizeof a);
    memcpy(x + TP_LANES, &b, sizeof b);
    for (int i = 0; i < TP_LANES; i++) x[i] = bf16_word(x[2 * i]) >> 16 | bf16_word(x[2 * i + 1]);
    memcpy(&a, x, sizeof a);
    return a;
}

/* acc + the pairs' products, the odd step's first. */
static inline v16 v16_dot2(const bool dot, v16 a, v16 b, v16 acc) {
#if TP_ISA >= 4
    if (dot) {
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(b), "v"(a));
        return acc;
    }
#endif
    (void)dot;
    acc = v16_fma(v16_upper_bf16(a), v16_upper_bf16(b), acc);
    return v16_fma(v16_lower_bf16(a), v16_lower_bf16(b), acc);
}

/* Denormals as zeros from here to gemm_denormals, on this thread. */
#if defined(__x86_64__)
static inline unsigned gemm_no_denormals(void) {
    unsigned was = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(was | 0x8040); /* flush to zero, denormals are zero */
    return was;
}
static inline void gemm_denormals(unsigned was) { __builtin_ia32_ldmxcsr(was); }
#else /* elsewhere only results below 1e-38 differ */
static inline unsigned gemm_no_denormals(void) { return 0; }
static inline void gemm_denormals(unsigned was) { (void)was; }
#endif
#endif
