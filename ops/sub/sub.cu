/* sub on CUDA. */
#include "ops/elementwise_cuda.h"

TP_BINARY_CUDA(sub_cuda, x - y)
