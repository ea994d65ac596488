/* The float formulas of silu, once: silu_cpu.c and silu.cu both call them. */
#ifndef TP_SILU_MATH_H
#define TP_SILU_MATH_H
#include "ops/math.h"

static inline TP_HD float silu_f(float x) { return x * tp_sigmoidf(x); }
static inline TP_HD float silu_dx(float x) {
    float s = tp_sigmoidf(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}
#endif
