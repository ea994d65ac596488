/* The float formulas of tanh, once: tanh_cpu.c and tanh.cu both call them. */
#ifndef TP_TANH_MATH_H
#define TP_TANH_MATH_H
#include "ops/math.h"

static inline TP_HD float tanh_f(float x) { return tp_tanhf(x); }
static inline TP_HD float tanh_dx(float y, float dy) { return dy * fmaf(-y, y, 1.0f); }
#endif
