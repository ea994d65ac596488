/* binary_cross_entropy on CUDA. */
#include "ops/binary_cross_entropy/binary_cross_entropy_math.h"
#include "ops/elementwise_cuda.h"

struct bce_fn {
    __device__ void operator()(const float *v, float *o, int64_t) const {
        o[0] = bce_f(v[0] != 0.0f, v[1]);
    }
};
struct bce_backward_fn {
    __device__ void operator()(const float *v, float *o, int64_t) const {
        o[0] = bce_dx(v[0] != 0.0f, v[1], v[2]);
    }
};
static tp_status forward_run(const tp_call *k) {
    TP_BY_FLOAT(k->out[0]->dtype, T,
                return (tp_map_typed<int32_t, T, T, 2, 1>(k, k->out, bce_fn())));
}
static tp_status backward_run(const tp_call *k) {
    TP_BY_FLOAT(k->out[0]->dtype, T,
                return (tp_map_typed<int32_t, T, T, 3, 1>(k, k->out, bce_backward_fn())));
}
TP_CUDA_KERNEL(bce_cuda, .decline = tp_decline_cuda_floats, .run = forward_run);
TP_CUDA_KERNEL(bce_backward_cuda, .decline = tp_decline_cuda_floats, .run = backward_run);
