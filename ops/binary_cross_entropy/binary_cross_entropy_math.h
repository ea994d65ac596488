/* The float formulas of binary_cross_entropy, once. */
#ifndef TP_BINARY_CROSS_ENTROPY_MATH_H
#define TP_BINARY_CROSS_ENTROPY_MATH_H
#include "ops/math.h"

/* log(1 + e^x) = max(x,0) + log(1 + e^-|x|): nothing overflows. */
static inline TP_HD float bce_softplus(float x) {
    float a = x < 0.0f ? -x : x;
    return (x > 0.0f ? x : 0.0f) + tp_logf(1.0f + tp_expf(-a));
}
static inline TP_HD float bce_f(bool yes, float x) { return bce_softplus(yes ? -x : x); }
static inline TP_HD float bce_dx(bool yes, float x, float dy) {
    return dy * (tp_sigmoidf(x) - (yes ? 1.0f : 0.0f));
}
/* The entropy of the decision itself: H(p) = softplus(x) - x p. */
static inline TP_HD float bce_entropy(float x) {
    float a = x < 0.0f ? -x : x; /* even in x; and p small keeps the difference exact */
    return bce_softplus(-a) + a * tp_sigmoidf(-a);
}
#endif
