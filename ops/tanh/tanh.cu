/* tanh on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/tanh/tanh_math.h"

TP_UNARY_CUDA(tanh_cuda, tanh_f(x))
TP_BINARY_CUDA(tanh_backward_cuda, tanh_dx(x, y))
