/* scale on the CPU. */
#include "ops/elementwise.h"
#include "ops/scale/scale_math.h"

TP_UNARY_ATTR_CPU(scale_cpu, const scale_attr *a = r_->attr; float s = (float)a->s;
                  float t = (float)a->t, scale_f(x, s, t))
