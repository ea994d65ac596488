/* fill on CUDA: the value is rounded on the host, then its bytes are repeated. */
#include "ops/cuda.h"
#include "ops/fill/fill_attr.h"

enum { FILL_THREADS = 256 };

template <typename U> __global__ void fill_with(U *y, U v, int64_t n) {
    enum { V = tp_width<U>::N };
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at + V <= n) {
        tp_vec<U, V> all;
#pragma unroll
        for (int e = 0; e < V; e++) all.v[e] = v;
        tp_store<U, V>(y + at, all);
        return;
    }
    for (int64_t i = at; i < n; i++) tp_stg(y + i, v);
}

template <typename U> static tp_status fill_typed(const tp_call *k) {
    alignas(8) U v;
    int64_t n = tp_numel(k->out[0]);
    fill_value(k, &v);
    return TP_LAUNCH(k, fill_with<U>, tp_blocks(n, (int64_t)FILL_THREADS * tp_width<U>::N),
                     FILL_THREADS, 0, (U *)k->out[0]->data, v, n);
}

static tp_status fill_run(const tp_call *k) {
    switch (tp_dtype_size(k->out[0]->dtype)) {
    case 1:
        return fill_typed<uint8_t>(k);
    case 2:
        return fill_typed<uint16_t>(k);
    case 4:
        return fill_typed<uint32_t>(k);
    default:
        return fill_typed<uint64_t>(k);
    }
}
TP_CUDA_KERNEL(fill_cuda, .run = fill_run);
