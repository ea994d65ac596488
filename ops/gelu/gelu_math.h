/* The float formulas of gelu, once: gelu_cpu.c, the products that end in a gelu and gelu.cu call
 * them. */
#ifndef TP_GELU_MATH_H
#define TP_GELU_MATH_H
#include "ops/math.h"

double gelu_f64(double x); /* the oracle's formulas, in gelu.c */
double gelu_dx_f64(double x);

/* 0.5 (1 + tanh u) = 1/(1 + e^-2u): one e^x and one division, and no cancellation for u < 0. */
static inline TP_HD float gelu_2u(float x, float x2) {
    return 1.595769122f * fmaf(0.044715f * x2, x, x);
}

static inline TP_HD float gelu_f(float x) { return x / (1.0f + tp_expf(-gelu_2u(x, x * x))); }

/* With s = 1/(1 + e), e = e^-2u:  y = x s,  y' = s + x s (1 - s) (2u)',  and 1 - s = e s. */
static inline TP_HD float gelu_dx(float x) {
    float x2 = x * x, v = -gelu_2u(x, x2), du = 1.595769122f * fmaf(0.134145f, x2, 1.0f);
    float e = tp_expf(v > 80.0f ? 80.0f : v), s = tp_rcpf(1.0f + e); /* e s needs a finite e */
    return s * fmaf(x, e * s * du, 1.0f);
}

/* … y'' = s (1 - s) (2 w + x ((1 - 2s) w^2 + w')), w = (2u)', w' = (2u)''. Where |2u| > 80 it is
 * below 1e-30, and its factors may overflow. */
static inline TP_HD float gelu_d2x(float x) {
    float x2 = x * x, v = -gelu_2u(x, x2), du = 1.595769122f * fmaf(0.134145f, x2, 1.0f);
    float e = tp_expf(v > 80.0f ? 80.0f : v), s = tp_rcpf(1.0f + e);
    float d2u = 0.428128898f * x;
    float y = e * s * s * fmaf(x, fmaf((e * s - s) * du, du, d2u), 2.0f * du);
    return fabsf(v) > 80.0f ? 0.0f : y;
}
#endif
