/* What a number becomes as an integer, once: cast_cpu.c and cast.cu both call it. */
#ifndef TP_CAST_MATH_H
#define TP_CAST_MATH_H
#include "ops/op.h"

/* The fraction is dropped; what does not fit is limited; NaN is 0. */
static inline TP_HD int64_t cast_to_integer(double v, tp_dtype t) {
    int64_t lo = t == TP_I32 ? INT32_MIN : t == TP_I64 ? INT64_MIN : 0;
    int64_t hi = t == TP_I32 ? INT32_MAX : t == TP_I64 ? INT64_MAX : 255;
    if (v != v) return 0;
    if (v >= (double)hi) return hi;
    return v <= (double)lo ? lo : (int64_t)v;
}
#endif
