/* The backward of attention on CUDA as plainly as it goes (the mathematics: attention_backward.c):
 * a warp for each query makes its delta and dq, then a warp for each key its dk and dv. Every
 * shape, stride and option in f32 and bf16; arithmetic in f32; sums over keys, and over heads and
 * queries, in order, each an unbroken chain in shared memory. */
#include "ops/attention/attention_math.h"
#include "ops/attention/attention_naive_cuda.h"

/* The weight p of a visible pair, and dx = p (dp - delta) slope. */
typedef struct naive_pair {
    float p, dx;
} naive_pair;

static __device__ __forceinline__ naive_pair naive_pair_of(const attention_params &p, float x,
                                                           float dp, float lse, float delta) {
    float s = p.scale * x, slope = 1;
    if (p.softcap > 0) {
        s = attention_softcap(s, p.softcap);
        slope = attention_softcap_dx(s, p.softcap);
    }
    naive_pair r;
    r.p = attention_weight(s, lse);
    r.dx = r.p * (dp - delta) * slope;
    return r;
}

/* sums[d] += sum over i < n, in order, of lane i's w times x(row of i, d); rows: (b, first + i, h).
 */
template <typename T>
static __device__ __forceinline__ void naive_add(float *sums, int D, float w, int n,
                                                 const attention_rows &x, int b, int first, int h,
                                                 int lane) {
    for (int d0 = 0; d0 < D; d0 += 32) {
        const int d = d0 + lane;
        float sum = d < D ? tp_lds(sums + d) : 0.0f;
        for (int i = 0; i < n; i++) {
            const float wi = naive_round<T>(__shfl_sync(0xffffffffu, w, i));
            if (d < D && wi != 0) sum = fmaf(wi, naive_at<T>(x, b, first + i, h, d), sum);
        }
        if (d < D) tp_sts(sums + d, sum);
    }
}

/* x(b, t, h, .) . row */
template <typename T>
static __device__ __forceinline__ float naive_dot(const float *row, const attention_rows &x, int b,
                                                  int t, int h, int D) {
    float s = 0;
    if (x.x)
        for (int d = 0; d < D; d++) s = fmaf(tp_lds(row + d), naive_at<T>(x, b, t, h, d), s);
    return s;
}

template <typename T>
__global__ void __launch_bounds__(32, 16)
    attention_naive_dq_kernel(const attention_backward_params x, float *delta_of) {
    const attention_params &p = x.f;
    TP_SHARED_DYNAMIC(shared);
    float *q = (float *)shared, *dq = q + p.D, *d_o = dq + p.D;
    const int lane = (int)threadIdx.x, t = (int)blockIdx.x % p.T, bh = (int)blockIdx.x / p.T;
    const int b = bh / p.H, h = bh % p.H;
    float delta = 0;
    for (int d = lane; d < p.Dv; d += 32) {
        const float y = naive_at<T>(x.d_o, b, t, h, d);
        tp_sts(d_o + d, y);
        if (x.d_o.x) delta = fmaf(y, naive_at<T>(x.o, b, t, h, d), delta);
    }
    delta = tp_warp_sum(delta);
    delta -= attention_statistic_at(x.dlse, b, h, t);
    if (lane == 0) delta_of[(int64_t)bh * p.T + t] = delta;
    for (int d = lane; d < p.D; d += 32) {
        tp_sts(q + d, naive_at<T>(p.q, b, t, h, d));
        tp_sts(dq + d, 0.0f);
    }
    __syncwarp();
    int lo, hi;
    attention_keys(attention_band_of(&p, b), t, t + 1, p.S, &lo, &hi);
    for (int j0 = lo; j0 < hi; j0 += 32) {
        const int j = j0 + lane;
        float dx = 0;
        if (j < hi && naive_same_segment(p, b, t, j))
            dx = naive_pair_of(p, naive_dot<T>(q, p.k, b, j, h / p.G, p.D),
                               naive_dot<T>(d_o, p.v, b, j, h / p.G, p.Dv),
                               attention_statistic_at(x.lse, b, h, t), delta)
                     .dx;
        naive_add<T>(dq, p.D, dx, min(hi - j0, 32), p.k, b, j0, h / p.G, lane);
    }
    T *to = attention_out_row<T>(x.dq, b, t, h);
    for (int d = lane; d < p.D; d += 32) to[d] = tp_from_f32<T>(p.scale * tp_lds(dq + d));
}

template <typename T>
__global__ void __launch_bounds__(32, 16)
    attention_naive_dkv_kernel(const attention_backward_params x, const float *delta_of) {
    const attention_params &p = x.f;
    TP_SHARED_DYNAMIC(shared);
    float *k = (float *)shared, *dk = k + p.D, *v = dk + p.D, *dv = v + p.Dv;
    const int lane = (int)threadIdx.x, j = (int)blockIdx.x % p.S, bh = (int)blockIdx.x / p.S;
    const int b = bh / p.Hkv, hkv = bh % p.Hkv;
    for (int d = lane; d < p.D; d += 32) {
        tp_sts(k + d, naive_at<T>(p.k, b, j, hkv, d));
        tp_sts(dk + d, 0.0f);
    }
    for (int d = lane; d < p.Dv; d += 32) {
        tp_sts(v + d, naive_at<T>(p.v, b, j, hkv, d));
        tp_sts(dv + d, 0.0f);
    }
    __syncwarp();
    const attention_band band = attention_band_of(&p, b);
    const int lo = max(j - band.hi, 0), hi = min(j - band.lo + 1, p.T);
    for (int h = hkv * p.G; h < hkv * p.G + p.G; h++)
        for (int t0 = lo; t0 < hi; t0 += 32) {
            const int t = t0 + lane, n = min(hi - t0, 32);
            naive_pair r = {0, 0};
            if (t < hi && naive_same_segment(p, b, t, j))
                r = naive_pair_of(p, naive_dot<T>(k, p.q, b, t, h, p.D),
                                  naive_dot<T>(v, x.d_o, b, t, h, p.Dv),
                                  attention_statistic_at(x.lse, b, h, t),
                                  delta_of[((int64_t)b * p.H + h) * p.T + t]);
            naive_add<T>(dk, p.D, r.dx, n, p.q, b, t0, h, lane);
            if (x.d_o.x) naive_add<T>(dv, p.Dv, r.p, n, x.d_o, b, t0, h, lane);
        }
    T *to = attention_out_row<T>(x.dk, b, j, hkv);
    for (int d = lane; d < p.D; d += 32) to[d] = tp_from_f32<T>(p.scale * tp_lds(dk + d));
    to = attention_out_row<T>(x.dv, b, j, hkv);
    for (int d = lane; d < p.Dv; d += 32) to[d] = tp_from_f32<T>(tp_lds(dv + d));
}

static size_t naive_shared(const attention_params &p) {
    return 2 * ((size_t)p.D + p.Dv) * sizeof(float) + 16;
}

static size_t naive_workspace(const tp_call *k) {
    const int64_t *q = k->in[0]->shape;
    return (size_t)(q[0] * q[1] * q[2]) * sizeof(float);
}

template <typename T> static tp_status naive_run_t(const tp_call *k) {
    const attention_backward_params x = attention_backward_params_of(k);
    const attention_params &p = x.f;
    float *delta = (float *)k->workspace;
    tp_status st = TP_LAUNCH(k, (attention_naive_dq_kernel<T>), (unsigned)(p.B * p.H * p.T), 32,
                             naive_shared(p), x, delta);
    if (st) return st;
    return TP_LAUNCH(k, (attention_naive_dkv_kernel<T>), (unsigned)(p.B * p.Hkv * p.S), 32,
                     naive_shared(p), x, delta);
}

static tp_status naive_run(const tp_call *k) {
    TP_BY_FLOAT(k->in[0]->dtype, T, return naive_run_t<T>(k));
}

static const char *naive_decline(const tp_call *k) {
    const char *no = tp_decline_cuda_floats(k);
    if (no || (no = attention_decline_sizes(k))) return no;
    for (int i = BACKWARD_O; i <= BACKWARD_DO; i++)
        if (k->in[i] && i != BACKWARD_LSE && k->in[i]->dtype != k->in[0]->dtype)
            return "o and do differ from q in dtype";
    const attention_params p = attention_params_of(k, NULL, NULL);
    return naive_shared(p) > 48 << 10 ? "a row is wider than shared memory" : NULL;
}

TP_CUDA_KERNEL(attention_backward_naive_cuda, .decline = naive_decline, .run = naive_run,
               .workspace = naive_workspace);
