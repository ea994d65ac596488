/* Elementary functions in float, the same bits on every CPU and on CUDA: only +, -, *, fmaf and bit
 * operations, no branches, so that compilers vectorise loops over them. Errors are against float64. */
#ifndef TP_MATH_H
#define TP_MATH_H
#include "ops/op.h"
#include <math.h>
#include <string.h>

static inline TP_HD float tp_bits_to_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline TP_HD uint32_t tp_f32_to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* e^x. x = n ln2 + r, |r| <= ln2/2; e^r = 1 + r + r^2 P(r) with the degree-5 minimax P of Moshier's
 * Cephes (expf.c); error < 1 ulp. 2^n in two halves so that results below 2^-126 underflow gradually.
 * NaN stays NaN. */
static inline TP_HD float tp_expf(float x)
{
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

/* tanh x = sign * (1 - 2/(e^{2|x|}+1)); below 0.55 the odd series
 * x - x^3/3 + 2x^5/15 - 17x^7/315 + 62x^9/2835 - … avoids the cancellation. */
static inline TP_HD float tp_tanhf(float x)
{
    float a = fabsf(x), s = x * x;
    float e = tp_expf(2.0f * (a > 20.0f ? 20.0f : a));
    float big = 1.0f - 2.0f / (e + 1.0f);
    float p = -0.0035921280f;
    p = fmaf(p, s, 0.0088632355f);
    p = fmaf(p, s, -0.0218694885f);
    p = fmaf(p, s, 0.0539682540f);
    p = fmaf(p, s, -0.1333333333f);
    p = fmaf(p, s, 0.3333333333f);
    float small = fmaf(-x * s, p, x);
    float signed_big = x < 0.0f ? -big : big;
    return a < 0.55f ? small : signed_big;
}

static inline TP_HD float tp_sigmoidf(float x) { return 1.0f / (1.0f + tp_expf(-x)); }
#endif
