/* add on CUDA. */
#include "ops/elementwise_cuda.h"

TP_BINARY_CUDA(add_cuda, x + y)

/* b may be a itself: a thread reads before it writes, and elements that are its own only. */
struct add_inplace_fn {
    __device__ void operator()(const float *v, float *o, int64_t) const { o[0] = v[0] + v[1]; }
};
static tp_status add_inplace_run(const tp_call *k) {
    return tp_map_run<2, 1>(k, k->in, add_inplace_fn());
}
TP_CUDA_KERNEL(add_inplace_cuda, .decline = tp_decline_cuda_floats, .run = add_inplace_run);
