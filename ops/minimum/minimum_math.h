/* The float formulas of minimum, once: minimum_cpu.c and minimum.cu both call them. */
#ifndef TP_MINIMUM_MATH_H
#define TP_MINIMUM_MATH_H
#include "ops/math.h"

/* x != x: NaN, which both pass on from either side */
static inline TP_HD float minimum_f(float x, float y) { return (x < y) | (x != x) ? x : y; }
static inline TP_HD float maximum_f(float x, float y) { return (x > y) | (x != x) ? x : y; }
#endif
