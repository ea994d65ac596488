/* The formulas of momentum and of a step along a direction in float, once. Muon shares the first.
 */
#ifndef TP_SGD_MATH_H
#define TP_SGD_MATH_H
#include "ops/op.h"
#include <math.h>

/* *b = mu*b + g; returns the direction, which with Nesterov looks one step ahead. */
static inline TP_HD float momentum_f(float *b, float g, float mu, bool nesterov) {
    float b1 = fmaf(mu, *b, g);
    *b = b1;
    return nesterov ? fmaf(mu, b1, g) : b1;
}

/* decay = lr*wd */
static inline TP_HD float sgd_f(float p, float u, float rate, float decay) {
    return p - fmaf(decay, p, rate * u);
}
#endif
