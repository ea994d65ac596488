/* Elementary functions in float, the same bits on every CPU and on CUDA: only +, -, *, fmaf and bit
 * operations, no branches, so that compilers vectorise loops over them. Errors are against float64.
 */
#ifndef TP_MATH_H
#define TP_MATH_H
#include "ops/op.h"
#include <math.h>
#include <string.h>

static inline TP_HD float tp_bits_to_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline TP_HD uint32_t tp_f32_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* e^x. x = n ln2 + r, |r| <= ln2/2; e^r = 1 + r + r^2 P(r) with the degree-5 minimax P of Moshier's
 * Cephes (expf.c); error < 1 ulp. 2^n in two halves so that results below 2^-126 underflow
 * gradually. NaN stays NaN. */
static inline TP_HD float tp_expf(float x) {
    float z = x < -104.0f ? -104.0f : x; /* comparisons with NaN are false: it passes through */
    z = z > 89.0f ? 89.0f : z;
    float t = fmaf(z, 1.44269504f, 12582912.0f); /* the nearest integer sits in the low bits */
    float n = t - 12582912.0f;
    float r = fmaf(n, -0.693359375f, z); /* ln2 = hi + lo: hi has 15 zero bits, so n*hi is exact */
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    int32_t k = (int32_t)(tp_f32_to_bits(t) - 0x4B400000u), half = k >> 1;
    float a = tp_bits_to_f32((uint32_t)(half + 127) << 23);
    float b = tp_bits_to_f32((uint32_t)(k - half + 127) << 23);
    return p * a * b;
}

/* 1/y, correctly rounded, for 1 <= y <= 2^100. A GPU's division of floats is an estimate and a
 * Newton step as well, behind a test for the y that need more and a branch for each. */
static inline TP_HD float tp_rcpf(float y) {
#if defined(__CUDA_ARCH__)
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(y));
    return fmaf(r, -fmaf(y, r, -1.0f), r);
#else
    return 1.0f / y;
#endif
}

/* tanh x = 1 - 2/(e^{2x}+1); below 0.625, where that cancels, x - x s P(s) with s = x^2 and P the
 * minimax polynomial of (1 - tanh(x)/x)/s (Remez exchange; 4e-9 relative). Error < 1.3 ulp. */
static inline TP_HD float tp_tanhf(float x) {
    float a = fabsf(x), s = x * x;
    float e = tp_expf(2.0f * (a > 20.0f ? 20.0f : a));
    float big = 1.0f - 2.0f / (e + 1.0f);
    float p = 5.7049869589e-3f;
    p = fmaf(p, s, -2.0639087179e-2f);
    p = fmaf(p, s, 5.3739715051e-2f);
    p = fmaf(p, s, -1.3331442197e-1f);
    p = fmaf(p, s, 3.3333281942e-1f);
    float small = fmaf(-x * s, p, x);
    float signed_big = x < 0.0f ? -big : big;
    return a < 0.625f ? small : signed_big;
}

/* 1/(1+e^-x). Error < 2.5 ulp; below -88.7 the denormal result is flushed to 0. */
static inline TP_HD float tp_sigmoidf(float x) { return 1.0f / (1.0f + tp_expf(-x)); }

/* ln x. x = 2^k m with m in [sqrt(1/2), sqrt(2)); with f = m - 1, ln m = f - f^2/2 + f^3 Q(f), Q
 * minimax (Remez exchange; 8e-10 relative). Error < 1 ulp. ln 0 = -inf, ln of negatives is NaN. */
static inline TP_HD float tp_logf(float x) {
    float tiny = x < 1.17549435e-38f ? 1.0f : 0.0f; /* denormals gain 25 bits first */
    uint32_t u = tp_f32_to_bits(tiny > 0.0f ? x * 33554432.0f : x);
    uint32_t over = u - 0x3F3504F3u; /* of sqrt(1/2): its high bits are k */
    int32_t k = (int32_t)over >> 23;
    float f = tp_bits_to_f32((over & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f, z = f * f;
    float n = (float)k - 25.0f * tiny;
    float q = 6.7466339342e-2f;
    q = fmaf(q, f, -1.1675645529e-1f);
    q = fmaf(q, f, 1.1888161735e-1f);
    q = fmaf(q, f, -1.2405589930e-1f);
    q = fmaf(q, f, 1.4219552580e-1f);
    q = fmaf(q, f, -1.6667995806e-1f);
    q = fmaf(q, f, 2.0002118646e-1f);
    q = fmaf(q, f, -2.5000009600e-1f);
    q = fmaf(q, f, 3.3333312604e-1f);
    float y = fmaf(n, -2.12194440e-4f, z * f * q); /* ln2 = hi + lo, as in tp_expf */
    y = fmaf(z, -0.5f, y);
    float r = fmaf(n, 0.693359375f, f + y);
    r = x > 3.40282347e38f ? x : r;
    r = x == 0.0f ? -HUGE_VALF : r;
    return x >= 0.0f ? r : x - x + NAN;
}
#endif
