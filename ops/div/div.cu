/* div on CUDA. */
#include "ops/elementwise_cuda.h"

TP_BINARY_CUDA(div_cuda, x / y)
