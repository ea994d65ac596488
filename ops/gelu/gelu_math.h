/* The float formulas of gelu, once: gelu_cpu.c and gelu.cu both call them. */
#ifndef TP_GELU_MATH_H
#define TP_GELU_MATH_H
#include "ops/math.h"

static inline TP_HD float gelu_f(float x) {
    float u = 0.797884561f * fmaf(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tp_tanhf(u));
}

static inline TP_HD float gelu_dx(float x) {
    float x2 = x * x, t = tp_tanhf(0.797884561f * fmaf(0.044715f * x2, x, x));
    float du = 0.797884561f * fmaf(0.134145f, x2, 1.0f);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * du;
}
#endif
