/* relu on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/relu/relu_math.h"

TP_UNARY_CUDA(relu_cuda, relu_f(x))
TP_BINARY_CUDA(relu_backward_cuda, relu_dx(x, y))
