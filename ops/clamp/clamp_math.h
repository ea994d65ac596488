/* The float formulas of clamp, once: clamp_cpu.c and clamp.cu both call them. */
#ifndef TP_CLAMP_MATH_H
#define TP_CLAMP_MATH_H
#include "ops/math.h"

typedef struct clamp_attr {
    double lo, hi;
} clamp_attr;

static inline TP_HD float clamp_f(float x, float lo, float hi) {
    float y = x < lo ? lo : x;
    return y > hi ? hi : y;
}
static inline TP_HD float clamp_dx(float x, float dy, float lo, float hi) {
    float d = x < lo ? 0.0f : dy;
    return x > hi ? 0.0f : d;
}
#endif
