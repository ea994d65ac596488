/* exp on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/exp/exp_math.h"

TP_UNARY_CUDA(exp_cuda, exp_f(x))
