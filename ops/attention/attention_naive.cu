/* Attention on CUDA as plainly as it goes: a warp for each row, arithmetic in f32. It takes every
 * shape, stride and option in f32 and bf16, and is what the tensor-core kernels are measured
 * against; speed is theirs.
 *
 * Keys come 32 at a time, one per lane: each lane makes the score of its key as one chain over d;
 * the warp moves the maximum and the sum (as attention_cpu.c does) and adds the 32 weighted values
 * in order. All sums lie in shared memory, so the widths are free.
 *
 * paged_attention runs the same kernel over rows that it finds through a table, so its bits are the
 * same; with sinks, the walk over the first keys comes before that over the window. */
#include "ops/attention/attention_math.h"
#include "ops/attention/attention_naive_cuda.h"
#include "ops/paged_attention/paged_attention_cuda.h"

template <typename T, bool PAGED>
__global__ void __launch_bounds__(32) attention_naive_kernel(const attention_params p) {
    TP_SHARED_DYNAMIC(shared);
    float *q = (float *)shared, *o = q + p.D; /* (D) scaled, (Dv) */
    const int lane = (int)threadIdx.x, t = (int)blockIdx.x % p.T, bh = (int)blockIdx.x / p.T;
    const int b = bh / p.H, h = bh % p.H;
    int lo, hi;
    attention_keys(attention_band_of(&p, b), t, t + 1, p.S, &lo, &hi);
    const bool apart = PAGED && p.sinks > 0 && p.sinks < lo; /* keys between are not seen */
    const int from = PAGED && p.sinks > 0 ? 0 : lo;
    for (int d = lane; d < p.D; d += 32) tp_sts(q + d, p.scale * naive_at<T>(p.q, b, t, h, d));
    for (int d = lane; d < p.Dv; d += 32) tp_sts(o + d, 0.0f);
    __syncwarp();

    float m = -INFINITY, l = 0;
    for (int j0 = from, next; j0 < hi; j0 = next) {
        const int end = apart && j0 < p.sinks ? p.sinks : hi, j = j0 + lane;
        next = j0 + 32 >= end && end < hi ? lo : j0 + 32;
        const bool sees = j < end && naive_same_segment(p, b, t, j);
        float s = -INFINITY;
        if (sees) {
            const T *key = (const T *)p.k.x + attention_row<PAGED>(p, p.k, b, j) + h / p.G * p.k.h;
            s = 0;
            for (int d = 0; d < p.D; d++) s = fmaf(tp_lds(q + d), tp_to_f32(key[d * p.k.d]), s);
            if (p.softcap > 0) s = attention_softcap(s, p.softcap);
        }
        const float top = fmaxf(m, tp_warp_max(s));
        if (!__any_sync(0xffffffffu, sees)) continue;
        const float w = sees ? attention_weight(s, top) : 0.0f;
        const float f = m == top ? 1.0f : attention_weight(m, top);
        l = fmaf(l, f, tp_warp_sum(w));
        m = top;
        const int n = min(end - j0, 32);
        for (int d0 = 0; d0 < p.Dv; d0 += 32) {
            const int d = d0 + lane;
            float sum = d < p.Dv ? f * tp_lds(o + d) : 0.0f;
            for (int i = 0; i < n; i++) {
                const float wi = naive_round<T>(__shfl_sync(0xffffffffu, w, i));
                if (d >= p.Dv || wi == 0) continue;
                const int64_t row = attention_row<PAGED>(p, p.v, b, j0 + i) + h / p.G * p.v.h;
                sum = fmaf(wi, tp_to_f32(((const T *)p.v.x)[row + d * p.v.d]), sum);
            }
            if (d < p.Dv) tp_sts(o + d, sum);
        }
    }
    __syncwarp();
    T *to = (T *)p.o + (((int64_t)b * p.T + t) * p.H + h) * p.Dv;
    for (int d = lane; d < p.Dv; d += 32) to[d] = tp_from_f32<T>(l == 0 ? 0.0f : tp_lds(o + d) / l);
    if (lane == 0) p.lse[(int64_t)bh * p.T + t] = l == 0 ? -INFINITY : m + tp_logf(l);
}

static size_t naive_shared(int64_t width) { return (size_t)width * sizeof(float) + 16; }

template <bool PAGED> static tp_status naive_launch(const tp_call *k, const attention_params &p) {
    const unsigned blocks = (unsigned)(p.B * p.H * p.T);
    TP_BY_FLOAT(k->in[0]->dtype, T,
                return TP_LAUNCH(k, (attention_naive_kernel<T, PAGED>), blocks, 32,
                                 naive_shared(p.D + p.Dv), p));
}

static const char *naive_decline_common(const tp_call *k) {
    const char *no = tp_decline_cuda_floats(k);
    if (no || (no = attention_decline_sizes(k))) return no;
    const int64_t width = k->in[0]->shape[3] + k->in[2]->shape[3];
    return naive_shared(width) > 48 << 10 ? "a row is wider than shared memory" : NULL;
}

static tp_status naive_run(const tp_call *k) {
    attention_params p = attention_params_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS]);
    p.o = k->out[0]->data;
    p.lse = tp_f32(k->out[1]);
    return naive_launch<false>(k, p);
}
TP_CUDA_KERNEL(attention_naive_cuda, .decline = naive_decline_common, .run = naive_run);

static tp_status paged_run(const tp_call *k) {
    attention_params p = paged_params_of(k);
    tp_status st = paged_attention_check_cuda(k, &p);
    return st ? st : naive_launch<true>(k, p);
}
static const char *paged_decline(const tp_call *k) {
    const char *no = naive_decline_common(k);
    return no ? no : paged_decline_sizes(k);
}
TP_CUDA_KERNEL(paged_attention_naive_cuda, .decline = paged_decline, .run = paged_run,
               .workspace = paged_workspace);
