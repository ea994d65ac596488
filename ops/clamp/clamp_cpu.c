/* clamp on the CPU. */
#include "ops/elementwise.h"
#include "ops/clamp/clamp_math.h"

#define BOUNDS                                                                                     \
    const clamp_attr *a = r_->attr;                                                                \
    float lo = (float)a->lo;                                                                       \
    float hi = (float)a->hi

TP_UNARY_ATTR_CPU(clamp_cpu, BOUNDS, clamp_f(x, lo, hi))
TP_BINARY_ATTR_CPU(clamp_backward_cpu, BOUNDS, clamp_dx(x, y, lo, hi))
