/* dropout on CUDA: a thread makes the four words of a group and uses them all. */
#include "ops/dropout/dropout_math.h"
#include "ops/elementwise_cuda.h"

template <typename T> __global__ void dropout_groups(tp_map_args a, dropout_mask m, bool vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, per = (m.inner + 3) / 4, from[1];
    int64_t sample = i / per, group = i - sample * per;
    if (sample >= m.samples) return;
    uint32_t word[4];
    dropout_group(m.k0, m.k1, m.sample + (uint64_t)sample, (uint64_t)group, word);
    int64_t at = sample * m.inner + 4 * group, left = m.inner - 4 * group;
    const T *x = (const T *)a.in[0];
    T *y = (T *)a.out[0];
    if (vectors && left >= 4) {
        tp_walk_at<1>(a.walk, at, from);
        tp_vec<T, 4> v = tp_load<T, 4>(x + from[0]);
#pragma unroll
        for (int e = 0; e < 4; e++)
            v.v[e] = tp_from_f32<T>(dropout_f(tp_to_f32(v.v[e]), word[e], m.threshold, m.scale));
        tp_store<T, 4>(y + at, v);
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (e >= left) return;
        tp_walk_at<1>(a.walk, at + e, from);
        float v = dropout_f(tp_to_f32(tp_ldg(x + from[0])), word[e], m.threshold, m.scale);
        tp_stg(y + at + e, tp_from_f32<T>(v));
    }
}

template <typename T> static tp_status dropout_typed(const tp_call *k) {
    dropout_mask m = dropout_mask_of(k);
    size_t bytes = sizeof(T);
    tp_map_args a = {};
    if (!tp_numel(k->out[0])) return TP_OK;
    a.walk = tp_walk_of(k, k->out[0]);
    a.in[0] = k->in[0]->data;
    a.out[0] = k->out[0]->data;
    bool vectors = (m.inner % 4 == 0 || m.samples == 1) && tp_map_takes(&a, 1, &bytes, 1, bytes, 4);
    return TP_LAUNCH(k, dropout_groups<T>,
                     tp_blocks(m.samples * ((m.inner + 3) / 4), TP_MAP_THREADS), TP_MAP_THREADS, 0,
                     a, m, vectors);
}

static tp_status dropout_run(const tp_call *k) {
    TP_BY_FLOAT(k->out[0]->dtype, T, return dropout_typed<T>(k));
}
TP_CUDA_KERNEL(dropout_cuda, .decline = tp_decline_cuda_floats, .run = dropout_run);
