/* Attention on CUDA as plainly as it goes: a warp for each row, arithmetic in f32. It takes every
 * shape, stride and option in f32 and bf16, and is what the tensor-core kernels are measured
 * against; speed is theirs.
 *
 * Keys come 32 at a time, one per lane: each lane makes the score of its key as one chain over d;
 * the warp moves the maximum and the sum (as attention_cpu.c does) and adds the 32 weighted values
 * in order. All sums lie in shared memory, so the widths are free. */
#include "ops/attention/attention_math.h"
#include "ops/attention/attention_naive_cuda.h"

template <typename T>
__global__ void __launch_bounds__(32) attention_naive_kernel(const attention_params p) {
    TP_SHARED_DYNAMIC(shared);
    float *q = (float *)shared, *o = q + p.D; /* (D) scaled, (Dv) */
    const int lane = (int)threadIdx.x, t = (int)blockIdx.x % p.T, bh = (int)blockIdx.x / p.T;
    const int b = bh / p.H, h = bh % p.H;
    int lo, hi;
    attention_keys(attention_band_of(&p, b), t, t + 1, p.S, &lo, &hi);
    for (int d = lane; d < p.D; d += 32) tp_sts(q + d, p.scale * naive_at<T>(p.q, b, t, h, d));
    for (int d = lane; d < p.Dv; d += 32) tp_sts(o + d, 0.0f);
    __syncwarp();

    float m = -INFINITY, l = 0;
    for (int j0 = lo; j0 < hi; j0 += 32) {
        const int j = j0 + lane;
        const bool sees = j < hi && naive_same_segment(p, b, t, j);
        float s = -INFINITY;
        if (sees) {
            s = 0;
            for (int d = 0; d < p.D; d++)
                s = fmaf(tp_lds(q + d), naive_at<T>(p.k, b, j, h / p.G, d), s);
            if (p.softcap > 0) s = attention_softcap(s, p.softcap);
        }
        const float top = fmaxf(m, tp_warp_max(s));
        if (!__any_sync(0xffffffffu, sees)) continue;
        const float w = sees ? attention_weight(s, top) : 0.0f;
        const float f = m == top ? 1.0f : attention_weight(m, top);
        l = fmaf(l, f, tp_warp_sum(w));
        m = top;
        const int n = min(hi - j0, 32);
        for (int d0 = 0; d0 < p.Dv; d0 += 32) {
            const int d = d0 + lane;
            float sum = d < p.Dv ? f * tp_lds(o + d) : 0.0f;
            for (int i = 0; i < n; i++) {
                const float wi = __shfl_sync(0xffffffffu, w, i);
                if (d < p.Dv && wi != 0)
                    sum = fmaf(wi, naive_at<T>(p.v, b, j0 + i, h / p.G, d), sum);
            }
            if (d < p.Dv) tp_sts(o + d, sum);
        }
    }
    __syncwarp();
    T *to = (T *)p.o + (((int64_t)b * p.T + t) * p.H + h) * p.Dv;
    for (int d = lane; d < p.Dv; d += 32) to[d] = tp_from_f32<T>(l == 0 ? 0.0f : tp_lds(o + d) / l);
    if (lane == 0) p.lse[(int64_t)bh * p.T + t] = l == 0 ? -INFINITY : m + tp_logf(l);
}

static size_t naive_shared(const attention_params &p) {
    return ((size_t)p.D + p.Dv) * sizeof(float) + 16;
}

static tp_status naive_run(const tp_call *k) {
    attention_params p = attention_params_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS]);
    p.o = k->out[0]->data;
    p.lse = tp_f32(k->out[1]);
    const unsigned blocks = (unsigned)(p.B * p.H * p.T);
    TP_BY_FLOAT(k->in[0]->dtype, T,
                return TP_LAUNCH(k, (attention_naive_kernel<T>), blocks, 32, naive_shared(p), p));
}

static const char *naive_decline(const tp_call *k) {
    const char *no = tp_decline_cuda_floats(k);
    if (no || (no = attention_decline_sizes(k))) return no;
    const attention_params p = attention_params_of(k, NULL, NULL);
    return naive_shared(p) > 48 << 10 ? "a row is wider than shared memory" : NULL;
}

TP_CUDA_KERNEL(attention_naive_cuda, .decline = naive_decline, .run = naive_run);
