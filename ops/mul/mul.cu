/* mul on CUDA. */
#include "ops/elementwise_cuda.h"

TP_BINARY_CUDA(mul_cuda, x *y)

/* b is known to the device only, so every thread looks at it; where it is 1 none goes on. */
template <typename T> __global__ void mul_by_one(T *a, const T *b, int64_t n) {
    enum { V = tp_width<T>::N };
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    float by = tp_to_f32(tp_ldg(b));
    if (at >= n || by == 1.0f) return;
    if (at + V <= n && (uintptr_t)a % 16 == 0) {
        tp_vec<T, V> v = tp_load<T, V>(a + at);
#pragma unroll
        for (int e = 0; e < V; e++) v.v[e] = tp_from_f32<T>(tp_to_f32(v.v[e]) * by);
        tp_store<T, V>(a + at, v);
        return;
    }
    for (int64_t i = at; i < at + V && i < n; i++)
        tp_stg(a + i, tp_from_f32<T>(tp_to_f32(tp_ldg(a + i)) * by));
}

template <typename T> static tp_status mul_inplace_typed(const tp_call *k) {
    int64_t n = tp_numel(k->in[0]);
    return TP_LAUNCH(k, mul_by_one<T>, tp_blocks(n, (int64_t)TP_MAP_THREADS * tp_width<T>::N),
                     TP_MAP_THREADS, 0, (T *)k->in[0]->data, (const T *)k->in[1]->data, n);
}

static tp_status mul_inplace_run(const tp_call *k) {
    TP_BY_FLOAT(k->in[0]->dtype, T, return mul_inplace_typed<T>(k));
}
TP_CUDA_KERNEL(mul_inplace_cuda, .decline = tp_decline_cuda_dense, .run = mul_inplace_run);
