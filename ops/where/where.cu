/* where on CUDA. */
#include "ops/elementwise_cuda.h"

struct where_fn {
    __device__ void operator()(const float *v, float *o, int64_t) const {
        o[0] = v[0] != 0.0f ? v[1] : v[2];
    }
};
static tp_status where_run(const tp_call *k) {
    TP_BY_FLOAT(k->out[0]->dtype, T,
                return (tp_map_typed<uint8_t, T, T, 3, 1>(k, k->out, where_fn())));
}
TP_CUDA_KERNEL(where_cuda, .decline = tp_decline_cuda_floats, .run = where_run);
