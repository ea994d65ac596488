/* relu on the CPU. */
#include "ops/elementwise.h"
#include "ops/relu/relu_math.h"

TP_UNARY_CPU(relu_cpu, relu_f(x))
TP_BINARY_CPU(relu_backward_cpu, relu_dx(x, y))
