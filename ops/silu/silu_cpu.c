/* silu on the CPU. */
#include "ops/elementwise.h"
#include "ops/silu/silu_math.h"

TP_UNARY_CPU(silu_cpu, silu_f(x))
TP_BINARY_CPU(silu_backward_cpu, silu_dx(x) * y)
