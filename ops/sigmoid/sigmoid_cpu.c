/* sigmoid on the CPU. */
#include "ops/elementwise.h"
#include "ops/sigmoid/sigmoid_math.h"

TP_UNARY_CPU(sigmoid_cpu, sigmoid_f(x))
TP_BINARY_CPU(sigmoid_backward_cpu, sigmoid_dx(x, y))
