/* simd: sixteen floats at once, the same lanes and the same bits for every instruction set.
 *
 * A *_cpu.c file is compiled once per TP_ISA (4: AVX-512, 3: AVX2+FMA, 1: plain C); a kernel
 * written with v16 therefore exists three times. Every operation here is one IEEE operation per
 * lane, and a reduction over lanes has one written order, so the three versions agree bit for bit
 * (except for the payload of a NaN). Loads and stores need no alignment. The _n forms touch n lanes
 * of memory, 0 <= n <= 16, and read zeros beyond. */
#ifndef TP_SIMD_H
#define TP_SIMD_H
#include "ops/convert.h"
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifndef TP_ISA
#define TP_ISA 1
#endif
#define TP_LANES 16

/* clang-format off: a line for each operation */
#if TP_ISA >= 4
#include <immintrin.h>
typedef __m512 v16;    /* sixteen floats */
typedef __mmask16 m16; /* sixteen truth values */

static inline v16 v16_set1(float x) { return _mm512_set1_ps(x); }
static inline v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
static inline m16 m16_first(int n) { return (m16)((1u << n) - 1u); }
static inline v16 v16_load_n(const float *p, int n) {
    return _mm512_maskz_loadu_ps(m16_first(n), p);
}
static inline void v16_store_n(float *p, v16 a, int n) {
    _mm512_mask_storeu_ps(p, m16_first(n), a);
}
static inline v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
static inline v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
static inline v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
static inline v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
static inline v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
static inline v16 v16_sqrt(v16 a) { return _mm512_sqrt_ps(a); }
static inline v16 v16_abs(v16 a) { return _mm512_abs_ps(a); }
static inline v16 v16_neg(v16 a) {
    return _mm512_castsi512_ps(
        _mm512_xor_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MIN)));
}
static inline v16 v16_round(v16 a) { return _mm512_roundscale_ps(a, 0x08); }
static inline m16 v16_lt(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline v16 v16_select(m16 m, v16 yes, v16 no) { return _mm512_mask_blend_ps(m, no, yes); }
static inline v16 v16_exp2i(v16 n) {
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
static inline v16 v16_upper_bf16(v16 a) {
    return _mm512_castsi512_ps(
        _mm512_and_epi32(_mm512_castps_si512(a), _mm512_set1_epi32((int32_t)0xffff0000)));
}
static inline v16 v16_lower_bf16(v16 a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16));
}

#elif TP_ISA == 3
#include <immintrin.h>
typedef struct v16 {
    __m256 lo, hi;
} v16;
typedef struct m16 {
    __m256 lo, hi;
} m16;

#define V16_(l, h) ((v16){(l), (h)})
static inline v16 v16_set1(float x) { return V16_(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
static inline v16 v16_load(const float *p) {
    return V16_(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
static inline void v16_store(float *p, v16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline __m256i v16_mask8_(int n) { /* all ones in lanes below n */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline v16 v16_load_n(const float *p, int n) {
    /* a masked lane is not read, but the pointer must still lie in the object: hence the test */
    __m256 hi = n > 8 ? _mm256_maskload_ps(p + 8, v16_mask8_(n - 8)) : _mm256_setzero_ps();
    return V16_(_mm256_maskload_ps(p, v16_mask8_(n)), hi);
}
static inline void v16_store_n(float *p, v16 a, int n) {
    _mm256_maskstore_ps(p, v16_mask8_(n), a.lo);
    if (n > 8) _mm256_maskstore_ps(p + 8, v16_mask8_(n - 8), a.hi);
}
#define V16_OP2_(name, op)                                                                         \
    static inline v16 name(v16 a, v16 b) { return V16_(op(a.lo, b.lo), op(a.hi, b.hi)); }
V16_OP2_(v16_add, _mm256_add_ps)
V16_OP2_(v16_sub, _mm256_sub_ps)
V16_OP2_(v16_mul, _mm256_mul_ps)
V16_OP2_(v16_div, _mm256_div_ps)
V16_OP2_(v16_max, _mm256_max_ps)
V16_OP2_(v16_min, _mm256_min_ps)
#undef V16_OP2_
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return V16_(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
static inline v16 v16_fnma(v16 a, v16 b, v16 c) {
    return V16_(_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi));
}
static inline v16 v16_sqrt(v16 a) { return V16_(_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)); }
static inline v16 v16_abs(v16 a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return V16_(_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));
}
static inline v16 v16_neg(v16 a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return V16_(_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi));
}
static inline v16 v16_round(v16 a) {
    return V16_(_mm256_round_ps(a.lo, 0x08), _mm256_round_ps(a.hi, 0x08));
}
static inline m16 v16_lt(v16 a, v16 b) {
    return (m16){_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
static inline v16 v16_select(m16 m, v16 yes, v16 no) {
    return V16_(_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi));
}
static inline __m256 v16_exp2i8_(__m256 n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
static inline v16 v16_exp2i(v16 n) { return V16_(v16_exp2i8_(n.lo), v16_exp2i8_(n.hi)); }
static inline __m256 v16_load_bf16x8_(const uint16_t *p) {
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    return V16_(v16_load_bf16x8_(p), v16_load_bf16x8_(p + 8));
}
static inline v16 v16_upper_bf16(v16 a) {
    __m256 upper = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)0xffff0000));
    return V16_(_mm256_and_ps(a.lo, upper), _mm256_and_ps(a.hi, upper));
}
static inline __m256 v16_lower_bf16x8_(__m256 a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16));
}
static inline v16 v16_lower_bf16(v16 a) {
    return V16_(v16_lower_bf16x8_(a.lo), v16_lower_bf16x8_(a.hi));
}

#else /* plain C */
typedef struct v16 {
    float f[TP_LANES];
} v16;
typedef struct m16 {
    uint8_t b[TP_LANES];
} m16;

#define V16_EACH_(expr)                                                                            \
    do {                                                                                           \
        v16 r_;                                                                                    \
        for (int i = 0; i < TP_LANES; i++) r_.f[i] = (expr);                                       \
        return r_;                                                                                 \
    } while (0)
static inline v16 v16_set1(float x) { V16_EACH_(x); }
static inline v16 v16_load(const float *p) { V16_EACH_(p[i]); }
static inline void v16_store(float *p, v16 a) { memcpy(p, a.f, sizeof a.f); }
static inline v16 v16_load_n(const float *p, int n) { V16_EACH_(i < n ? p[i] : 0.0f); }
static inline void v16_store_n(float *p, v16 a, int n) {
    for (int i = 0; i < n; i++) p[i] = a.f[i];
}
static inline v16 v16_add(v16 a, v16 b) { V16_EACH_(a.f[i] + b.f[i]); }
static inline v16 v16_sub(v16 a, v16 b) { V16_EACH_(a.f[i] - b.f[i]); }
static inline v16 v16_mul(v16 a, v16 b) { V16_EACH_(a.f[i] * b.f[i]); }
static inline v16 v16_div(v16 a, v16 b) { V16_EACH_(a.f[i] / b.f[i]); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { V16_EACH_(fmaf(a.f[i], b.f[i], c.f[i])); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { V16_EACH_(fmaf(-a.f[i], b.f[i], c.f[i])); }
static inline v16 v16_max(v16 a, v16 b) { V16_EACH_(a.f[i] > b.f[i] ? a.f[i] : b.f[i]); }
static inline v16 v16_min(v16 a, v16 b) { V16_EACH_(a.f[i] < b.f[i] ? a.f[i] : b.f[i]); }
static inline v16 v16_sqrt(v16 a) { V16_EACH_(sqrtf(a.f[i])); }
static inline v16 v16_abs(v16 a) { V16_EACH_(fabsf(a.f[i])); }
static inline v16 v16_neg(v16 a) { V16_EACH_(-a.f[i]); }
static inline v16 v16_round(v16 a) { V16_EACH_(rintf(a.f[i])); }
static inline m16 v16_lt(v16 a, v16 b) {
    m16 r;
    for (int i = 0; i < TP_LANES; i++) r.b[i] = a.f[i] < b.f[i];
    return r;
}
static inline v16 v16_select(m16 m, v16 yes, v16 no) { V16_EACH_(m.b[i] ? yes.f[i] : no.f[i]); }
static inline float v16_bits_(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline v16 v16_exp2i(v16 n) {
    V16_EACH_(v16_bits_((uint32_t)((int32_t)rintf(n.f[i]) + 127) << 23));
}
static inline v16 v16_load_bf16(const uint16_t *p) { V16_EACH_(v16_bits_((uint32_t)p[i] << 16)); }
static inline uint32_t v16_word_(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline v16 v16_upper_bf16(v16 a) { V16_EACH_(v16_bits_(v16_word_(a.f[i]) & 0xffff0000u)); }
static inline v16 v16_lower_bf16(v16 a) { V16_EACH_(v16_bits_(v16_word_(a.f[i]) << 16)); }
#endif

/* What each operation means, where the name alone leaves it open:
 *   v16_fma(a,b,c)     a*b + c, rounded once            v16_fnma(a,b,c)  c - a*b, rounded once
 *   v16_max(a,b)       a > b ? a : b, so a NaN gives b   v16_min(a,b)     a < b ? a : b
 *   v16_round(a)       to the nearest integer, ties to even
 *   v16_exp2i(n)       2^n for integral n in [-126,127]; 0 for n = -127
 *   v16_select(m,y,n)  m ? y : n per lane
 *   v16_upper_bf16(a)  the bf16 in the upper half of each lane, as f32; v16_lower_bf16: in the
 * lower */
static inline v16 v16_zero(void) { return v16_set1(0.0f); }
/* clang-format on */

/* How many lanes of vector v are among the first n of a row of vectors: 0 to 16. */
static inline int v16_lanes(int64_t n, int64_t v) {
    int64_t rest = n - v * TP_LANES;
    return rest < 0 ? 0 : rest > TP_LANES ? TP_LANES : (int)rest;
}

/* The lanes' sum in the one order that every instruction set uses: lane i + lane i+8, then the
 * halves of that (i+4), then i+2, then i+1. */
static inline float v16_sum(v16 a) {
    float f[TP_LANES];
    v16_store(f, a);
    for (int half = TP_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) f[i] += f[i + half];
    return f[0];
}

/* The largest lane; like v16_max it passes over a NaN only by luck, so check for NaN elsewhere. */
static inline float v16_hmax(v16 a) {
    float f[TP_LANES];
    v16_store(f, a);
    for (int half = TP_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) f[i] = f[i] > f[i + half] ? f[i] : f[i + half];
    return f[0];
}

/* Rounds to bf16 as convert.h says. */
static inline void v16_store_bf16(uint16_t *p, v16 a) {
    float f[TP_LANES];
    v16_store(f, a);
    for (int i = 0; i < TP_LANES; i++) p[i] = tp_f32_to_bf16(f[i]);
}

/* Transposes sixteen vectors in place: afterwards lane j of r[i] is what lane i of r[j] was. */
#if TP_ISA >= 4
static inline void v16_transpose(v16 r[TP_LANES]) {
    v16 t[TP_LANES];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) { /* pairs of lanes from pairs of rows */
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* quads: r[i+q] holds lane 4*l+q of rows i..i+3 */
        r[i] = (v16)_mm512_unpacklo_pd((__m512d)t[i], (__m512d)t[i + 2]);
        r[i + 1] = (v16)_mm512_unpackhi_pd((__m512d)t[i], (__m512d)t[i + 2]);
        r[i + 2] = (v16)_mm512_unpacklo_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
        r[i + 3] = (v16)_mm512_unpackhi_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) { /* 128-bit blocks: first of rows 0-7 and 8-15, then together */
        t[q] = _mm512_shuffle_f32x4(r[q], r[q + 4], 0x88);
        t[q + 4] = _mm512_shuffle_f32x4(r[q + 8], r[q + 12], 0x88);
        t[q + 8] = _mm512_shuffle_f32x4(r[q], r[q + 4], 0xdd);
        t[q + 12] = _mm512_shuffle_f32x4(r[q + 8], r[q + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        r[q] = _mm512_shuffle_f32x4(t[q], t[q + 4], 0x88);
        r[q + 8] = _mm512_shuffle_f32x4(t[q], t[q + 4], 0xdd);
        r[q + 4] = _mm512_shuffle_f32x4(t[q + 8], t[q + 12], 0x88);
        r[q + 12] = _mm512_shuffle_f32x4(t[q + 8], t[q + 12], 0xdd);
    }
}
#elif TP_ISA == 3
static inline void v16_transpose8_(__m256 r[8]) {
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}
static inline void v16_transpose(v16 r[TP_LANES]) {
    __m256 q[4][8]; /* the four 8x8 quarters: upper left, upper right, lower left, lower right */
    for (int i = 0; i < 8; i++) {
        q[0][i] = r[i].lo, q[1][i] = r[i].hi;
        q[2][i] = r[i + 8].lo, q[3][i] = r[i + 8].hi;
    }
    for (int i = 0; i < 4; i++) v16_transpose8_(q[i]);
    for (int i = 0; i < 8; i++) {
        r[i] = V16_(q[0][i], q[2][i]);
        r[i + 8] = V16_(q[1][i], q[3][i]);
    }
}
#else
static inline void v16_transpose(v16 r[TP_LANES]) {
    for (int i = 0; i < TP_LANES; i++)
        for (int j = 0; j < i; j++) {
            float x = r[i].f[j];
            r[i].f[j] = r[j].f[i];
            r[j].f[i] = x;
        }
}
#endif
#endif
