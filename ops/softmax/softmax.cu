/* softmax on CUDA. */
#include "ops/softmax/softmax_cuda.h"

SOFTMAX_CUDA(softmax, false)
