/* scale on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/scale/scale_math.h"

TP_UNARY_ATTR_CUDA(scale_cuda, scale_attr, float s = (float)a->s;
                   float t = (float)a->t, scale_f(x, s, t))
