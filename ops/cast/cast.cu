/* cast on CUDA: whole vectors for f32 and bf16, one value per thread for the other pairs. */
#include "ops/cast/cast_math.h"
#include "ops/elementwise_cuda.h"

struct cast_fn {
    __device__ void operator()(const float *v, float *o, int64_t) const { o[0] = v[0]; }
};

/* Every type but i64 fits in a double; i64 as the CPU takes it, rounded. */
static __device__ double cast_get(const void *x, tp_dtype t, int64_t i) {
    switch (t) {
    case TP_F32:
        return tp_ldg((const float *)x + i);
    case TP_F64:
        return tp_ldg((const double *)x + i);
    case TP_BF16:
        return tp_to_f32(tp_ldg((const tp_bf16 *)x + i));
    case TP_I32:
        return tp_ldg((const int32_t *)x + i);
    case TP_I64:
        return (double)tp_ldg((const int64_t *)x + i);
    default:
        return tp_ldg((const uint8_t *)x + i);
    }
}

static __device__ void cast_put(void *y, tp_dtype t, int64_t i, double v) {
    switch (t) {
    case TP_F32:
        return tp_stg((float *)y + i, (float)v);
    case TP_F64:
        return tp_stg((double *)y + i, v);
    case TP_BF16:
        return tp_stg((tp_bf16 *)y + i, tp_from_f32<tp_bf16>((float)v));
    case TP_I32:
        return tp_stg((int32_t *)y + i, (int32_t)cast_to_integer(v, t));
    case TP_I64:
        return tp_stg((int64_t *)y + i, cast_to_integer(v, t));
    default:
        return tp_stg((uint8_t *)y + i, (uint8_t)cast_to_integer(v, t));
    }
}

__global__ void cast_any(tp_walk w, const void *x, void *y, tp_dtype from, tp_dtype to, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, at[1];
    if (i >= n) return;
    tp_walk_at<1>(w, i, at);
    if (from == TP_I64 && to == TP_I64)
        tp_stg((int64_t *)y + i, tp_ldg((const int64_t *)x + at[0]));
    else
        cast_put(y, to, i, cast_get(x, from, at[0]));
}

static tp_status cast_run(const tp_call *k) {
    tp_dtype from = k->in[0]->dtype, to = k->out[0]->dtype;
    int64_t n = tp_numel(k->out[0]);
    if (from == TP_F32 && to == TP_BF16)
        return tp_map_typed<float, float, tp_bf16, 1, 1>(k, k->out, cast_fn());
    if (from == TP_BF16 && to == TP_F32)
        return tp_map_typed<tp_bf16, float, float, 1, 1>(k, k->out, cast_fn());
    return TP_LAUNCH(k, cast_any, tp_blocks(n, TP_MAP_THREADS), TP_MAP_THREADS, 0,
                     tp_walk_of(k, k->out[0]), k->in[0]->data, k->out[0]->data, from, to, n);
}
TP_CUDA_KERNEL(cast_cuda, .run = cast_run);
