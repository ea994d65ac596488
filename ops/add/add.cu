/* add on CUDA. */
#include "ops/elementwise_cuda.h"

TP_BINARY_CUDA(add_cuda, x + y)
