/* The float formulas of exp, once: exp_cpu.c and exp.cu both call them. */
#ifndef TP_EXP_MATH_H
#define TP_EXP_MATH_H
#include "ops/math.h"

static inline TP_HD float exp_f(float x) { return tp_expf(x); }
#endif
