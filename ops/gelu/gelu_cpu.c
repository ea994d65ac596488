/* gelu on the CPU: plain loops that the compiler vectorises for each instruction set. */
#include "ops/elementwise.h"
#include "ops/gelu/gelu_math.h"

TP_UNARY_CPU(gelu_cpu, gelu_f(x))
TP_BINARY_CPU(gelu_backward_cpu, gelu_dx(x) * y)
