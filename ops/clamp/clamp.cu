/* clamp on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/clamp/clamp_math.h"

#define BOUNDS                                                                                     \
    float lo = (float)a->lo;                                                                       \
    float hi = (float)a->hi

TP_UNARY_ATTR_CUDA(clamp_cuda, clamp_attr, BOUNDS, clamp_f(x, lo, hi))
TP_BINARY_ATTR_CUDA(clamp_backward_cuda, clamp_attr, BOUNDS, clamp_dx(x, y, lo, hi))
