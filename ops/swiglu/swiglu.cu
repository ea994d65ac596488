/* swiglu on CUDA. gate and up usually are the halves of one (…,2F) buffer. */
#include "ops/elementwise_cuda.h"
#include "ops/silu/silu_math.h"

TP_BINARY_CUDA(swiglu_cuda, silu_f(x) * y)

struct swiglu_backward_fn {
    __device__ void operator()(const float *v, float *o, int64_t) const {
        float x = v[0], u = v[1], d = v[2];
        o[0] = d * u * silu_dx(x);
        o[1] = d * silu_f(x);
    }
};
static tp_status swiglu_backward_run(const tp_call *k) {
    return tp_map_run<3, 2>(k, k->out, swiglu_backward_fn());
}
TP_CUDA_KERNEL(swiglu_backward_cuda, .decline = tp_decline_cuda_floats, .run = swiglu_backward_run);
