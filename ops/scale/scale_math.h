/* The float formula of scale: scale_cpu.c and scale.cu both call it. */
#ifndef TP_SCALE_MATH_H
#define TP_SCALE_MATH_H
#include "ops/math.h"

typedef struct scale_attr {
    double s, t;
} scale_attr;

static inline TP_HD float scale_f(float x, float s, float t) { return fmaf(s, x, t); }
#endif
