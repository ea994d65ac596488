/* The formulas of softmax and log_softmax and their gradients, per element; s, gy, ge and log_sum
 * are sums over the row as softmax.c and log_softmax.c define them. */
#ifndef TP_SOFTMAX_MATH_H
#define TP_SOFTMAX_MATH_H
#include "ops/math.h"

/* expf overflows above 88.7, so the largest is subtracted */
static inline TP_HD float softmax_exp(float x, float max) { return tp_expf(x - max); }
static inline TP_HD float softmax_dx(float y, float dy, float s) { return y * (dy - s); }
/* the gradient of softmax_dx for y, given g */
static inline TP_HD float softmax_dy2(float dy, float g, float s, float gy) {
    return g * (dy - s) - dy * gy;
}

static inline TP_HD float log_softmax_y(float x, float max, float log_sum) {
    return (x - max) - log_sum;
}
static inline TP_HD float log_softmax_dx(float y, float dy, float s) {
    return fmaf(-tp_expf(y), s, dy);
}
/* the gradient of log_softmax_dx for y, given g; that for dy is g - ge */
static inline TP_HD float log_softmax_dy2(float y, float g, float s) { return -g * tp_expf(y) * s; }
#endif
