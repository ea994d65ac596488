/* gelu on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/gelu/gelu_math.h"

TP_UNARY_CUDA(gelu_cuda, gelu_f(x))
TP_BINARY_CUDA(gelu_backward_cuda, gelu_dx(x) * y)
TP_BINARY_CUDA(gelu_backward2_cuda, gelu_d2x(x) * y)
