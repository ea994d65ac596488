/* minimum, maximum and less on CUDA. */
#include "ops/elementwise_cuda.h"
#include "ops/minimum/minimum_math.h"

TP_BINARY_CUDA(minimum_cuda, minimum_f(x, y))
TP_BINARY_CUDA(maximum_cuda, maximum_f(x, y))

struct less_fn {
    __device__ void operator()(const float *v, float *o, int64_t) const { o[0] = v[0] < v[1]; }
};
static tp_status less_run(const tp_call *k) {
    TP_BY_FLOAT(k->in[0]->dtype, T,
                return (tp_map_typed<T, T, uint8_t, 2, 1>(k, k->out, less_fn())));
}
TP_CUDA_KERNEL(less_cuda, .decline = tp_decline_cuda_floats, .run = less_run);
