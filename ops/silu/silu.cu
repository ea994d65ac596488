/* silu on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/silu/silu_math.h"

TP_UNARY_CUDA(silu_cuda, silu_f(x))
TP_BINARY_CUDA(silu_backward_cuda, silu_dx(x) * y)
