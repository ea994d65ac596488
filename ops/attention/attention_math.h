/* The scalar formulas of attention in float, once: every kernel calls them. */
#ifndef TP_ATTENTION_MATH_H
#define TP_ATTENTION_MATH_H
#include "ops/math.h"

/* s = cap tanh(x/cap), so ds/dx = 1 - (s/cap)^2. */
static inline TP_HD float attention_softcap(float x, float cap) { return cap * tp_tanhf(x / cap); }
static inline TP_HD float attention_softcap_dx(float s, float cap) {
    float t = s / cap;
    return 1.0f - t * t;
}

/* The weight of a key whose score is s, when the scores' log-sum-exp (or their maximum) is m. */
static inline TP_HD float attention_weight(float s, float m) { return tp_expf(s - m); }
#endif
