/* log on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/log/log_math.h"

TP_UNARY_CUDA(log_cuda, log_f(x))
