/* tanh on the CPU. */
#include "ops/elementwise.h"
#include "ops/tanh/tanh_math.h"

TP_UNARY_CPU(tanh_cpu, tanh_f(x))
TP_BINARY_CPU(tanh_backward_cpu, tanh_dx(x, y))
