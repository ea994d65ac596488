/* log_softmax on CUDA. */
#include "ops/softmax/softmax_cuda.h"

SOFTMAX_CUDA(log_softmax, true)
