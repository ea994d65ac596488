/* sigmoid on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/sigmoid/sigmoid_math.h"

TP_UNARY_CUDA(sigmoid_cuda, sigmoid_f(x))
TP_BINARY_CUDA(sigmoid_backward_cuda, sigmoid_dx(x, y))
