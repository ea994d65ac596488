/* The float formulas of sigmoid, once: sigmoid_cpu.c and sigmoid.cu both call them. */
#ifndef TP_SIGMOID_MATH_H
#define TP_SIGMOID_MATH_H
#include "ops/math.h"

static inline TP_HD float sigmoid_f(float x) { return tp_sigmoidf(x); }
static inline TP_HD float sigmoid_dx(float y, float dy) { return dy * y * (1.0f - y); }
#endif
