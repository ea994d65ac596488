/* The float formulas of relu, once: relu_cpu.c and relu.cu both call them. */
#ifndef TP_RELU_MATH_H
#define TP_RELU_MATH_H
#include "ops/math.h"

static inline TP_HD float relu_f(float x) { return x < 0.0f ? 0.0f : x; } /* keeps NaN */
static inline TP_HD float relu_dx(float y, float dy) { return y > 0.0f ? dy : 0.0f; }
#endif
